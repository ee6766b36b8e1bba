"""Linear-AcT: the affine map that is nearest to the monotone transport."""

from act.marginal import Marginal
from act.transport.affine import Fitted, line_through_means
from act.transport.coupling import couple


def fit_linear(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron.

    With `ã` and `b̃` the sorted samples less their means `m_a` and `m_b`, equally many,

        ``scale = Σ ã₍ᵢ₎ b̃₍ᵢ₎ / Σ ã₍ᵢ₎²``,  ``shift = m_b - scale * m_a``,

    which is the least-squares line from the source's order statistics to the target's: Definition 3.1 of Rodriguez et
    al., *Controlling Language and Diffusion Models by Transporting Activations*, arXiv 2410.23054, whose printed
    denominator has a slip. For unequal counts the sums are integrals of the quantile functions. With ρ the correlation
    of the monotone coupling it is ``scale = ρ s_b / s_a``, which is how it is computed: of cells ρ is known well, and
    the deviations are known for themselves.

    The scale is never negative. A neuron whose source has no spread, or whose line float32 cannot hold or compute,
    gets scale 1 and the shift between the means: see `line_through_means`.
    """
    coupling = couple(source, target)
    (least_a, most_a), (least_b, most_b) = source.deviation_bounds, target.deviation_bounds
    scale = coupling.correlation * (target.deviation / source.deviation)
    least, most = coupling.lowest * least_b / most_a, coupling.highest * most_b / least_a
    return line_through_means(source, target, scale, least, most)
