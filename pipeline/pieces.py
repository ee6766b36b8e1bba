"""Pieces: which micro-batches of a unit are to run in pieces, because they did when the unit ran before.

Written for a replay, and before a unit is repaired: a piece has the bits of its whole on most machines, but none
promises it.
"""

from dataclasses import dataclass
from typing import final

from pipeline.errors import DamagedRunError
from pipeline.ledger import REPAIR
from pipeline.storage import AbstractStorage
from schemas import record
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
        self._storage = storage
        self._there: frozenset[str] | None = None

    def key(self, unit: Unit) -> str:
        """Where a unit's lie."""
        return f"{SPLITS}/{unit.side}/{unit.index:08d}.json"

    def known(self, unit: Unit) -> tuple[Split, ...]:
        """Returns what is known of a unit; of which units something is, is asked once.

        Raises:
            DamagedRunError: It cannot be read.
        """
        if self._there is None:
            self._there = frozenset(self._storage.keys(SPLITS))
        key = self.key(unit)
        if key not in self._there:
            return ()
        try:
            found = record.unseal(UnitSplits, self._storage.read(key))
        except (FileNotFoundError, record.RecordError) as exc:
            raise DamagedRunError(self._storage.place(key), str(exc), REPAIR) from exc
        if (found.side, found.unit) != (unit.side, unit.index):
            raise DamagedRunError(self._storage.place(key), f"it is not that of {unit}", REPAIR)
        return found.splits

    def remember(self, unit: Unit, splits: tuple[Split, ...]) -> None:
        """Writes what is known of a unit.

        Raises:
            StoreError: The storage refuses.
        """
        self._storage.write(self.key(unit), record.seal(UnitSplits(unit.side, unit.index, splits)))
        self._there = None
