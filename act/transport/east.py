"""EAST: the target's mean is added to every neuron."""

import torch

from act.marginal import Marginal
from act.transport.affine import Fitted


def fit_east(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``m_b``.

    Entropic Activation Steering of Rahn et al., *Controlling Large Language Model Agents with Entropic Activation
    Steering*, arXiv 2406.00244; Table 1 of Rodriguez et al., arXiv 2410.23054. There the mean is weighted by the
    entropy of what the agent did; a law knows no entropies, so here all weights are equal. Needs moments, those of the
    target alone. Pooling in the paper: last, at one layer that is searched for. Nothing is degenerate.
    """
    one, none = torch.ones_like(source.mean), torch.zeros_like(source.mean)
    return Fitted(one, target.mean.clone(), none, target.mean_error.clone())
