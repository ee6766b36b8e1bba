"""ITI-m: Inference-Time Intervention along the difference of the means."""

from act.marginal import Marginal
from act.transport.affine import Fitted
from act.transport.mean import fit_mean


def fit_iti_mean(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``m_b - m_a``.

    The mass mean shift of Li et al., *Inference-Time Intervention: Eliciting Truthful Answers from a Language Model*,
    arXiv 2306.03341, section 4; ITI-m in Table 1 of Rodriguez et al., arXiv 2410.23054. Needs moments. Pooling in the
    paper: last, on the outputs of attention heads, of which a search keeps the best. Nothing is degenerate: a neuron
    without spread is shifted as any other.
    """
    return fit_mean(source, target)
