"""Mean-AcT: every neuron is moved by the difference of the means."""

import torch

from act.marginal import Marginal
from act.transport.affine import Fitted


def fit_mean(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``m_b - m_a``.

    Mean-AcT of Rodriguez et al., *Controlling Language and Diffusion Models by Transporting Activations*,
    arXiv 2410.23054, Table 1.
    """
    one, none = torch.ones_like(source.mean), torch.zeros_like(source.mean)
    return Fitted(one, target.mean - source.mean, none, source.mean_error + target.mean_error)
