"""Quarantine: which prompts of a unit cost a worker its life, written down as soon as it is known."""

from dataclasses import dataclass
from typing import final

from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.scheduling.records import AbstractRecords
from pipeline.storage import AbstractStorage
from pipeline.unit_notes import UnitNotes
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
        self._culprits = UnitNotes(storage, QUARANTINE, Culprits)

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
        """Reads what was remembered."""
        culprits = self._culprits.find(unit)
        return () if culprits is None else culprits.prompts

    def remember(self, unit: Unit, culprits: tuple[Quarantined, ...]) -> None:
        """Writes all that is known of a unit."""
        self._culprits.write(unit, Culprits(unit.side, unit.index, culprits))
