"""Pieces: which micro-batches of a unit are to run in pieces, because they did when the unit ran before.

Written for a replay, and before a unit is repaired: a piece has the bits of its whole on most machines, but none
promises it.
"""

from dataclasses import dataclass
from typing import final

from pipeline.storage import AbstractStorage
from pipeline.unit_notes import UnitNotes
from schemas.plan import SideName, Unit
from schemas.receipt import Split

SPLITS = "splits"


@final
@dataclass(frozen=True)
class UnitSplits:
    """The micro-batches of a unit that run in pieces.

    Args:
        side: Side of the unit.
        unit: Number of the unit.
        splits: The micro-batches, and in how many pieces each runs.
    """

    side: SideName
    unit: int
    splits: tuple[Split, ...]


@final
class Pieces:
    """What is written down in a run about the pieces of its units.

    Args:
        storage: Where the run lies.
    """

    def __init__(self, storage: AbstractStorage) -> None:
        self._splits = UnitNotes(storage, SPLITS, UnitSplits)

    def key(self, unit: Unit) -> str:
        """Where a unit's lie."""
        return self._splits.key(unit)

    def known(self, unit: Unit) -> tuple[Split, ...]:
        """Returns what is known of a unit.

        Raises:
            DamagedRunError: It cannot be read.
        """
        found = self._splits.find(unit)
        return () if found is None else found.splits

    def remember(self, unit: Unit, splits: tuple[Split, ...]) -> None:
        """Writes what is known of a unit.

        Raises:
            StoreError: The storage refuses.
        """
        self._splits.write(unit, UnitSplits(unit.side, unit.index, splits))
