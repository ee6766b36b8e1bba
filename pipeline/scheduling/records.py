"""What is written down about units, as far as whoever schedules them asks."""

from abc import ABC, abstractmethod

from schemas.plan import Unit
from schemas.receipt import Quarantined, Receipt
from schemas.treatment import Crumb


class AbstractRecords(ABC):
    """What is written down about the units of a run."""

    @abstractmethod
    def find(self, unit: Unit) -> Receipt | None:
        """Returns the receipt of a unit that is done. Asked only when a worker was lost."""

    @abstractmethod
    def crumb(self, unit: Unit) -> Crumb | None:
        """Returns the last breadcrumb that an attempt at a unit left."""

    @abstractmethod
    def known(self, unit: Unit) -> tuple[Quarantined, ...]:
        """Returns the prompts of a unit that are known to end workers. Asked once a unit, so it must be fast."""

    @abstractmethod
    def remember(self, unit: Unit, culprits: tuple[Quarantined, ...]) -> None:
        """Writes down all prompts of a unit that are known to end workers by now."""
