"""Workers: whoever runs units and folds their sketches. In this process, or on Ray (`pipeline.cluster`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, final

from pipeline.extract import Extractor
from pipeline.reduce import Reducer
from schemas.plan import LawName, Plan, Unit
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
    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames of some laws, each by one worker."""

    @abstractmethod
    def extract(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Yields the receipt of every unit, in the order in which they finish."""

    @abstractmethod
    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to the reducers, who fold it when they can; a run of exact laws has none."""

    @abstractmethod
    def reduce(self, receipts: Sequence[Receipt]) -> None:
        """Waits until the reducers have folded all these units and written the laws of their hookpoints."""


@final
class InProcessWorkers(AbstractWorkers):
    """One worker and one reducer, in this process: for notebooks and debuggers.

    Args:
        plan: The plan.
        root: The run folder.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan, self._root = plan, root
        self._extractor: Extractor | None = None
        self._reducer = Reducer(plan, root, range(len(plan.sites))) if plan.law.kind == "sketch" else None

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
        """Lets go of the model and the laws."""
        self._extractor = self._reducer = None

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames one after the other."""
        for law in laws:
            self._worker.settle_frame(law)

    def extract(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Runs the units one after the other."""
        for unit in units:
            yield self._worker.extract(unit)

    def fold(self, receipt: Receipt) -> None:
        """Folds a unit at once."""
        if self._reducer is not None:
            self._reducer.fold(receipt)

    def reduce(self, receipts: Sequence[Receipt]) -> None:
        """Folds what is missing and writes the laws."""
        if self._reducer is not None:
            self._reducer.finish(receipts)

    @property
    def _worker(self) -> Extractor:
        assert self._extractor is not None, "units run inside the context"
        return self._extractor
