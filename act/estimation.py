"""Estimation: which activations the maps of a model are fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from act.errors import EstimationError
from act.steer import Steer
from act.transport import AbstractMap
from schemas.card import SiteCard

Unreached = Literal["refuse", "skip"]


@final
@dataclass(frozen=True)
class Sequential:
    """How to fit one site after the other.

    Args:
        blocks: Into how many groups of sites, as equal as can be, the sites are parted in execution order: a group is
            fitted at once, on activations that the groups before it have moved, and takes a forward of its own up to
            its last site. None fits every site by itself, in one forward in all.
        unreached: What to do about a site that a batch does not visit, such as an expert that is not asked: ``refuse``;
            or ``skip``, which fits it on the batches that come, and leaves it out if a side has none. To know the order
            of all sites, that runs every batch once more.
        start: A steer whose maps are taken over as they are: its sites are not fitted again, those after them are
            fitted on what it moves.

    Raises:
        EstimationError: There is no such number of groups, or no such word.
    """

    blocks: int | None = None
    unreached: Unreached = "refuse"
    start: Steer | None = None

    def __post_init__(self) -> None:
        if self.blocks is not None and (isinstance(self.blocks, bool) or self.blocks < 1):
            raise EstimationError("blocks", self.blocks, "a whole number of at least 1, or None")
        if self.unreached not in get_args(Unreached):
            raise EstimationError("unreached", self.unreached, f"one of {', '.join(get_args(Unreached))}")

    def __str__(self) -> str:
        """The estimation in words, as on a card."""
        blocks = "" if self.blocks is None else f" in {self.blocks} blocks"
        return f"sequential{blocks}{'' if self.start is None else ', from a former steer'}"


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit in memory gives.

    Args:
        maps: The map of each site that has one, by its name, in execution order.
        lines: Their lines of the card.
        num_samples: Samples of the source and of the target.
    """

    maps: Mapping[str, AbstractMap]
    lines: Sequence[SiteCard]
    num_samples: tuple[int, int]
