"""What is written down about single units before they run, a file each: culprits, and micro-batches in pieces."""

from typing import Generic, Protocol, TypeVar, final

from pipeline.errors import DamagedRunError
from pipeline.ledger import REPAIR
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.plan import SideName, Unit


class UnitNote(Protocol):
    """A record about a unit."""

    @property
    def side(self) -> SideName:
        """Side of the unit."""

    @property
    def unit(self) -> int:
        """Number of the unit."""


N = TypeVar("N", bound=UnitNote)


@final
class UnitNotes(Generic[N]):
    """The notes of one kind, in a folder of a run.

    Args:
        storage: Where the run lies.
        folder: Key of the folder.
        kind: What is written in it.
    """

    def __init__(self, storage: AbstractStorage, folder: str, kind: type[N]) -> None:
        self._storage, self._folder, self._kind = storage, folder, kind
        self._there: set[str] | None = None

    def key(self, unit: Unit) -> str:
        """Where a unit's note lies."""
        return f"{self._folder}/{unit.side}/{unit.index:08d}.json"

    def find(self, unit: Unit) -> N | None:
        """Returns the note of a unit, or None; of which units there are some is asked once.

        Raises:
            DamagedRunError: It cannot be read.
        """
        key = self.key(unit)
        if key not in self._listed():
            return None
        try:
            note = record.unseal(self._kind, self._storage.read(key))
        except (FileNotFoundError, record.RecordError) as exc:
            raise DamagedRunError(self._storage.place(key), str(exc), REPAIR) from exc
        if (note.side, note.unit) != (unit.side, unit.index):
            raise DamagedRunError(self._storage.place(key), f"it is not that of {unit}", REPAIR)
        return note

    def write(self, unit: Unit, note: N) -> None:
        """Writes the note of a unit.

        Raises:
            StoreError: The storage refuses.
        """
        self._storage.write(self.key(unit), record.seal(note))
        self._listed().add(self.key(unit))

    def _listed(self) -> set[str]:
        if self._there is None:
            self._there = set(self._storage.keys(self._folder))
        return self._there
