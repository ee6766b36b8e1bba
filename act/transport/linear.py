"""Linear-AcT: the affine map that is nearest to the monotone transport."""

import torch

from act.marginal import Marginal
from act.transport.coupling import coupled_covariance
from act.transport.mean import fit_mean


def fit_linear(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale and shift of each neuron, both `[neurons]`, float64.

    With `ã` and `b̃` the sorted samples less their means `m_a` and `m_b`, equally many,

        ``scale = Σ ã₍ᵢ₎ b̃₍ᵢ₎ / Σ ã₍ᵢ₎²``,  ``shift = m_b - scale * m_a``,

    which is the least-squares line from the source's order statistics to the target's: Definition 3.1 of Rodriguez et
    al., *Controlling Language and Diffusion Models by Transporting Activations*, arXiv 2410.23054, whose printed
    denominator has a slip. For unequal counts the sums are integrals of the quantile functions.

    The scale is never negative. A neuron whose source has no spread, or too little for the scale and shift to be
    float32 numbers, gets scale 1 and the shift between the means.
    """
    plain_scale, plain_shift = fit_mean(source, target)
    variance = source.variance
    spread = (source.low < source.high) & (variance > 0)
    scale = coupled_covariance(source, target) / variance.where(spread, 1.0)
    shift = target.mean - scale * source.mean
    usable = spread & scale.float().isfinite() & shift.float().isfinite()
    return scale.where(usable, plain_scale), shift.where(usable, plain_shift)
