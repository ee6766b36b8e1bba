"""Workers: whoever runs units. In this process, or on Ray (`pipeline.cluster`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, final

from pipeline.extract import Extractor
from schemas.plan import Plan, Unit
from schemas.receipt import Receipt


class AbstractWorkers(ABC):
    """Runs units, each by one worker, and yields their receipts as they land; leaving the context ends the workers."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The plan whose units they run."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Starts the workers and loads their models."""

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Ends the workers, whatever they are doing."""

    @abstractmethod
    def extract(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Yields the receipt of every unit, in the order in which they finish."""


@final
class InProcessWorkers(AbstractWorkers):
    """One worker, in this process: for notebooks and debuggers.

    Args:
        plan: The plan.
        root: The run folder.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan, self._root = plan, root
        self._extractor: Extractor | None = None

    @property
    def plan(self) -> Plan:
        """The plan whose units it runs."""
        return self._plan

    def __enter__(self) -> Self:
        """Loads the model."""
        self._extractor = Extractor(self._plan, self._root)
        self._extractor.ready()
        return self

    def __exit__(self, *error: object) -> None:
        """Lets go of the model."""
        self._extractor = None

    def extract(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Runs the units one after the other."""
        assert self._extractor is not None, "units run inside the context"
        for unit in units:
            yield self._extractor.extract(unit)
