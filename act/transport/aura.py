"""AurA: neurons are damped by how well they tell the source from the target."""

import torch

from act.marginal import Marginal
from act.transport.affine import Fitted
from act.transport.ranking import auroc, auroc_bounds


def fit_aura(source: Marginal, target: Marginal) -> Fitted:
    """Returns the line of each neuron, with scale ``1 - 2 max(AUROC - 1/2, 0)`` and shift 0.

    AurA of Suau et al., *Whispering Experts: Neural Interventions for Toxicity Mitigation in Language Models*, arXiv
    2407.12824: ``1 - Gini`` for neurons that are higher on the source than on the target, 1 for all others; Table 1 of
    Rodriguez et al., arXiv 2410.23054. Needs laws, for the AUROC. Pooling in the paper: max.

    A neuron that is constant on both sides, and equally, has an AUROC of 1/2 and stays; one that is constant and
    higher on the source has 1 and is set to 0.
    """
    scale = _damped(auroc(source, target))
    most, least = (_damped(area) for area in auroc_bounds(source, target))
    slope_error = (scale - least).maximum(most - scale).clamp(min=0)
    return Fitted(scale, torch.zeros_like(scale), slope_error, slope_error * source.mean.abs())


def _damped(area: torch.Tensor) -> torch.Tensor:
    return 1 - 2 * (area - 0.5).clamp(min=0)
