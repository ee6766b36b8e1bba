"""ActAdd: every neuron is moved by the difference of a contrast pair."""

from act.errors import PairsError
from act.marginal import Marginal
from act.transport.affine import Fitted
from act.transport.mean import fit_mean


def fit_actadd(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``a⁺ - a⁻``, the target's sample less the source's.

    Activation Addition of Turner et al., *Activation Addition: Steering Language Models Without Optimization*, arXiv
    2308.10248; Table 1 of Rodriguez et al., arXiv 2410.23054. Needs pairs: as many samples of the source as of the
    target. Of one pair it is the paper's; of several it is the mean over the pairs, which is the difference of the
    means, whichever sample is paired with which. Pooling in the paper: last. Nothing is degenerate: a neuron without
    spread is shifted as any other.

    Raises:
        PairsError: The sides differ in their number of samples.
    """
    if source.num_samples != target.num_samples:
        raise PairsError(source.num_samples, target.num_samples)
    return fit_mean(source, target)
