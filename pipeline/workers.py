"""Workers: whoever runs units and folds their sketches. In this process, or on Ray (`pipeline.cluster`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self, final

from pipeline.extract import Extractor
from pipeline.quarantine import RunRecords
from pipeline.reduce import Reducer, shares
from pipeline.sequential.drive import AbstractSteppers, InProcessSteppers
from pipeline.sequential.stepper import Stepper
from pipeline.storage import storage_at
from schemas.plan import LawName, Plan, Unit, side_of
from schemas.receipt import Receipt
from schemas.treatment import Treatment


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
    def turn(self, plan: Plan, uri: str) -> None:
        """Goes on with another run, whose model and numerics are the same; the workers keep their models."""

    @abstractmethod
    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames of some laws, each by one worker."""

    @abstractmethod
    def extract(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Yields the receipt of every unit, in the order in which they finish. Units are taken as workers are free."""

    @abstractmethod
    def steppers(self) -> AbstractContextManager[AbstractSteppers]:
        """Returns a context with whoever takes the units of a sequential fit's source through the model.

        In it, and after it, nobody extracts any more.
        """

    @abstractmethod
    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to the reducers, who fold it when they can; a run of exact laws has none."""

    @abstractmethod
    def reduce(self) -> None:
        """Waits until the reducers have folded all units that are done, and written the laws of their hookpoints."""


@final
class InProcessWorkers(AbstractWorkers):
    """One worker and all reducers, in this process: for notebooks and debuggers.

    A prompt that ends its worker ends the run here.

    Args:
        plan: The plan.
        uri: Where the run lies.
    """

    def __init__(self, plan: Plan, uri: str) -> None:
        self._plan, self._uri = plan, uri
        self._extractor: Extractor | None = None
        self._reducers: list[Reducer] | None = None

    @property
    def plan(self) -> Plan:
        """The plan whose units it runs."""
        return self._plan

    def __enter__(self) -> Self:
        """Loads the model."""
        self._extractor = Extractor(self._plan, self._uri)
        self._extractor.ready()
        return self

    def __exit__(self, *error: object) -> None:
        """Lets go of the model and the laws."""
        self._extractor = self._reducers = None

    def turn(self, plan: Plan, uri: str) -> None:
        """Keeps the model."""
        self._plan, self._uri, self._reducers = plan, uri, None
        self._worker.turn(plan, uri)

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames one after the other."""
        records = RunRecords(storage_at(self._uri), self._plan)
        for law in laws:
            masked = records.known(self._plan.unit(side_of(law), 0))
            self._worker.settle_frame(law, Treatment(masked=masked))

    def extract(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Runs the units one after the other."""
        records = RunRecords(storage_at(self._uri), self._plan)
        for unit in units:
            yield self._worker.extract(unit, Treatment(masked=records.known(unit)))

    @contextmanager
    def steppers(self) -> Iterator[AbstractSteppers]:
        """Goes on with the model that it has."""
        stepper = Stepper(self._plan, self._uri, self._worker)
        try:
            yield InProcessSteppers(stepper)
        finally:
            stepper.close()

    def fold(self, receipt: Receipt) -> None:
        """Folds a unit at once."""
        for reducer in self._reducing():
            reducer.fold(receipt)

    def reduce(self) -> None:
        """Folds what is missing and writes the laws."""
        for reducer in self._reducing():
            reducer.finish()

    def _reducing(self) -> list[Reducer]:
        if self._reducers is None:
            owned = shares(self._plan) if self._plan.sketched else []
            self._reducers = [Reducer(self._plan, self._uri, sites) for sites in owned]
        return self._reducers

    @property
    def _worker(self) -> Extractor:
        assert self._extractor is not None, "units run inside the context"
        return self._extractor
