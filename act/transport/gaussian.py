"""Gaussian-AcT: the transport between two normal laws."""

from act.marginal import Marginal
from act.transport.affine import Fitted, line_through_means


def fit_gaussian(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, ``scale = s_b / s_a`` and ``shift = m_b - scale * m_a``.

    It is the optimal transport if both laws are normal, or of any one location-scale family: Rodriguez et al.,
    *Controlling Language and Diffusion Models by Transporting Activations*, arXiv 2410.23054, Table 1. `Linear-AcT`'s
    scale is this times the correlation of the monotone coupling, so never larger.

    A neuron whose source has no spread, or whose line float32 cannot hold or compute, gets scale 1 and the shift
    between the means: see `line_through_means`.
    """
    (least_a, most_a), (least_b, most_b) = source.deviation_bounds, target.deviation_bounds
    return line_through_means(source, target, target.deviation / source.deviation, least_b / most_a, most_b / least_a)
