"""Quarantine: which prompts of a unit cost a worker its life, written down as soon as it is known."""

from dataclasses import dataclass
from typing import final

from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.ledger import REPAIR, Ledger
from pipeline.scheduling.records import AbstractRecords
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.plan import Plan, SideName, Unit
from schemas.receipt import Quarantined, Receipt
from schemas.treatment import Crumb

QUARANTINE = "quarantine"


@final
@dataclass(frozen=True)
class Culprits:
    """The prompts of a unit that ended workers.

    Args:
        side: Side of the unit.
        unit: Number of the unit.
        prompts: The prompts, and what each did.
    """

    side: SideName
    unit: int
    prompts: tuple[Quarantined, ...]


@final
class RunRecords(AbstractRecords):
    """What is written down in a run about its units.

    Args:
        storage: Where the run lies.
        plan: Its plan.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._folder, self._ledger = storage, RunFolder(storage), Ledger(storage, plan)
        self._there: set[str] | None = None

    def find(self, unit: Unit) -> Receipt | None:
        """Asks the ledger."""
        return self._ledger.find(unit)

    def crumb(self, unit: Unit) -> Crumb | None:
        """Reads the breadcrumb; one that cannot be read says nothing."""
        try:
            return record.unseal(Crumb, self._storage.read(self._folder.crumb(unit)))
        except (FileNotFoundError, record.RecordError):
            return None

    def known(self, unit: Unit) -> tuple[Quarantined, ...]:
        """Reads what was remembered; of which units something was is asked once."""
        if self._there is None:
            self._there = set(self._storage.keys(QUARANTINE))
        key = self._folder.quarantine(unit)
        if key not in self._there:
            return ()
        try:
            culprits = record.unseal(Culprits, self._storage.read(key))
        except (FileNotFoundError, record.RecordError) as exc:
            raise DamagedRunError(self._storage.place(key), str(exc), REPAIR) from exc
        if (culprits.side, culprits.unit) != (unit.side, unit.index):
            raise DamagedRunError(self._storage.place(key), f"it is not that of {unit}", REPAIR)
        return culprits.prompts

    def remember(self, unit: Unit, culprits: tuple[Quarantined, ...]) -> None:
        """Writes all that is known of a unit."""
        key = self._folder.quarantine(unit)
        self._storage.write(key, record.seal(Culprits(unit.side, unit.index, culprits)))
        self._there = (self._there or set(self._storage.keys(QUARANTINE))) | {key}
