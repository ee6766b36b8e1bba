"""CAA: every neuron is moved by the difference of the means, at the layer that answers best."""

from act.marginal import Marginal
from act.transport.affine import Fitted
from act.transport.mean import fit_mean


def fit_caa(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``m_b - m_a``.

    Contrastive Activation Addition of Rimsky et al., *Steering Llama 2 via Contrastive Activation Addition*, arXiv
    2312.06681; Table 1 of Rodriguez et al., arXiv 2410.23054. Needs moments; the samples need no pairs, as the mean of
    differences is the difference of means. Pooling in the paper: last, at one layer that is searched for. Nothing is
    degenerate: a neuron without spread is shifted as any other.
    """
    return fit_mean(source, target)
