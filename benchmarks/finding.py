"""What a benchmark finds: a claim, what was measured, what was wanted."""

import enum
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, final

A = TypeVar("A")
B = TypeVar("B")


class Effort(enum.Enum):
    """How long a benchmark may take: minutes, or as long as the claim's own numbers need."""

    USUAL = "usual"
    LONG = "long"


@final
@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: their median, lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of some measurements."""
        return cls(statistics.median(values), min(values), max(values))


@final
@dataclass(frozen=True)
class Wanted:
    """What the project promises: at least, or under, some value."""

    sense: Literal["at least", "under"]
    value: float

    def met(self, measured: float) -> bool:
        """Returns whether a measurement keeps the promise."""
        return measured >= self.value if self.sense == "at least" else measured < self.value


@final
@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Args:
        claim: What was compared with what.
        unit: Unit of the numbers: ``x`` for a ratio.
        measured: The numbers.
        wanted: What is promised of their median; None for a number that only informs.
        notes: What else the measurement showed, a sentence each.
    """

    claim: str
    unit: str
    measured: Spread
    wanted: Wanted | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``met``, ``MISSED``, or nothing where nothing is promised."""
        if self.wanted is None:
            return ""
        return "met" if self.wanted.met(self.measured.median) else "MISSED"


def alternate(pairs: int, first: Callable[[int], A], second: Callable[[int], B]) -> Iterator[tuple[A, B]]:
    """Yields what both return for pair 0, 1, …, run as A B, B A, A B, …, so that a drift of the machine hits both."""
    for pair in range(pairs):
        if pair % 2 == 0:
            one = first(pair)
            yield one, second(pair)
        else:
            two = second(pair)
            yield first(pair), two
