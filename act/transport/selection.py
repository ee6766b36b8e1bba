"""Selection: which neurons or sites are moved at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch

from act.errors import SelectionError
from act.marginal import Marginal
from act.transport.coupling import wasserstein2
from act.transport.ranking import auroc

By = Literal["w2", "auroc"]
Of = Literal["neurons", "sites"]
Across = Literal["site", "model"]


@final
@dataclass(frozen=True)
class Selection:
    """The neurons that are moved: those whose laws differ most. The others stay as they are.

    Args:
        by: What ranks them: ``w2``, the distance W2 between source and target law in the unit of the activation; or
            ``auroc``, how well the activation tells the two apart, ``|AUROC - 1/2|``.
        top: How many are moved, a whole number of at least 1; or which share of them, a fraction up to 1. A share is
            rounded to the nearest whole number, and at least one is moved.
        of: What is ranked: single neurons, or whole sites. A site ranks by the root mean square of its neurons' W2, or
            by the mean of their ``|AUROC - 1/2|``.
        across: Whether each site ranks its own neurons, or the model ranks them all. Sites are always ranked across
            the model.

    Raises:
        SelectionError: Some part is none of these.
    """

    by: By
    top: int | float
    of: Of = "neurons"
    across: Across = "site"

    def __post_init__(self) -> None:
        for name, words in (("by", get_args(By)), ("of", get_args(Of)), ("across", get_args(Across))):
            if getattr(self, name) not in words:
                raise SelectionError(name, getattr(self, name), f"one of {', '.join(words)}")
        whole = isinstance(self.top, int) and not isinstance(self.top, bool) and self.top >= 1
        share = isinstance(self.top, float) and 0 < self.top <= 1
        if not (whole or share):
            raise SelectionError("top", self.top, "a whole number of at least 1, or a share above 0 and up to 1.0")

    def __str__(self) -> str:
        """The selection in words, as on a card: ``top 64 neurons of each site by w2``."""
        number = f"{self.top}" if isinstance(self.top, int) else f"{100 * self.top:g}% of"
        place = "" if self.of == "sites" else " of each site" if self.across == "site" else " of the model"
        return f"top {number} {self.of}{place} by {self.by}"


def scores(by: str, source: Marginal, target: Marginal) -> torch.Tensor:
    """Returns how much the two laws of each neuron differ, `[neurons]`, float64: what `select` takes of each site.

    Args:
        by: ``w2`` or ``auroc``, see `Selection`.
        source: The one law.
        target: The other, of as many neurons.

    Raises:
        SelectionError: It is neither.
    """
    match by:
        case "w2":
            return wasserstein2(source, target)
        case "auroc":
            return (auroc(source, target) - 0.5).abs()
    raise SelectionError("by", by, f"one of {', '.join(get_args(By))}")


def select(selection: Selection, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns which neurons of each site are moved, `[neurons]` each, bool.

    Of equal scores the one that comes first counts as higher: by site, then by neuron.

    Args:
        selection: What is selected.
        scores: Of each site, in execution order, what the function `scores` returned, `[neurons]`.
    """
    if selection.of == "sites":
        chosen = _top(selection.top, torch.stack([_of_site(selection.by, site) for site in scores]))
        return [one.expand(len(site)).clone() for one, site in zip(chosen, scores, strict=True)]
    if selection.across == "site":
        return [_top(selection.top, site) for site in scores]
    return list(torch.split(_top(selection.top, torch.cat(list(scores))), [len(site) for site in scores]))


def _of_site(by: str, scores: torch.Tensor) -> torch.Tensor:
    if by == "auroc":
        return scores.mean()
    # Squares of large distances may overflow; of ratios to the largest they do not.
    largest = scores.max().where(scores.max() > 0, 1.0)
    return (scores / largest).square().mean().sqrt() * largest


def _top(top: float, scores: torch.Tensor) -> torch.Tensor:
    number = top if isinstance(top, int) else max(1, round(top * len(scores)))
    best = scores.sort(descending=True, stable=True).indices[: int(number)]
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, best, value=True)
