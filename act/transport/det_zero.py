"""Det-zero: neurons that detect the source are set to the target's mean."""

import torch

from act.errors import ThresholdError
from act.marginal import Marginal
from act.transport.affine import Fitted
from act.transport.ranking import average_precision, average_precision_bounds


def fit_det_zero(source: Marginal, target: Marginal, threshold: float) -> Fitted:
    """Returns the line of each neuron: scale 0 and shift ``m_b`` where ``AP > threshold``, elsewhere the identity.

    Suau et al., *Self-Conditioning Pre-Trained Language Models*, arXiv 2110.02802: experts, neurons whose activation
    has a high average precision as a detector of the source, are set to a constant; Det_zero in Table 1 of Rodriguez et
    al., arXiv 2410.23054, with the target's mean as the constant. Needs laws, for the average precision. Pooling in
    the paper: max.

    Chance has an average precision of about ``n / (n + m)``, which a neuron that is constant on both sides has
    exactly: with more samples of the source than of the target a threshold of 1/2 sets all neurons that tell nothing.
    Where cells leave it open on which side of the threshold a neuron is, its error is the jump between the two.

    Args:
        source: Law of `a`.
        target: Law of `b`, of as many neurons.
        threshold: ``ε``, at least 0 and below 1.

    Raises:
        ThresholdError: It is not.
    """
    if not 0 <= threshold < 1:
        raise ThresholdError(threshold)
    detects = average_precision(source, target) > threshold
    least, most = average_precision_bounds(source, target)
    unsure = (least <= threshold) & (threshold < most)
    scale = torch.ones_like(source.mean).masked_fill(detects, 0.0)
    # |m_b - x| is at most |x - m_a| + |m_a - m_b|.
    jump = (target.mean - source.mean).abs() + target.mean_error
    offset = target.mean_error.where(detects, 0.0)
    return Fitted(scale, target.mean.where(detects, 0.0), unsure.double(), jump.where(unsure, offset))
