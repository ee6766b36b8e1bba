"""Claim: the driver's own work is under 5 ms a unit, however many units there are."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, final
from unittest import mock

from rich.console import Console

from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.runs import Setting, lay_out, scratch, tiny_model
from jobs.progress import shown
from jobs.stages import Stages
from pipeline.cluster import RayWorkers
from pipeline.disk import Disk
from pipeline.sequential.drive import AbstractSteppers
from pipeline.storage import AbstractStorage
from pipeline.tally import Tally
from pipeline.workers import AbstractWorkers
from schemas.events import Advanced, Event, Listener
from schemas.plan import LawName, Plan, SideFacts, Unit
from schemas.receipt import Output, Receipt, packed_tokens
from schemas.treatment import Treatment

UNIT_SIZE = 512
NUM_UNITS = {Effort.USUAL: 10_000, Effort.LONG: 100_000}
WINDOW = 1_000

_PLAIN = Treatment()


@final
class IdleExtractor:
    """Does a unit by saying that it is done. Stands in for `pipeline.extract.Extractor`, also as an actor."""

    def __init__(self, plan: Plan, uri: str) -> None:
        self._receipt = Receipt(
            plan=plan.fingerprint,
            model="idle",
            side="source",
            unit=0,
            attempt=1,
            origin="",
            num_prompts=UNIT_SIZE,
            tokens=packed_tokens([16 + row % 48 for row in range(UNIT_SIZE)]),
            num_truncated=0,
            quarantined=(),
            splits=(),
            outputs=(Output("activations", "activations.zarr/source/c/0/0", 1, 0, "0" * 64),),
            seconds=0.0,
            compute_seconds=0.0,
            worker=os.getpid(),
            peak_memory=1,
        )

    def ready(self) -> int:
        """Returns the process id."""
        return os.getpid()

    def settle_frame(self, law: LawName, treatment: Treatment = _PLAIN) -> None:
        """Does nothing."""

    def extract(self, unit: Unit, treatment: Treatment = _PLAIN) -> Receipt:
        """Returns a receipt of full size at once; nothing is written."""
        return dataclasses.replace(self._receipt, side=unit.side, unit=unit.index)


@final
class IdleWorkers(AbstractWorkers):
    """One idle worker in this process."""

    def __init__(self, plan: Plan, uri: str) -> None:
        self._plan, self._extractor = plan, IdleExtractor(plan, uri)

    @property
    def plan(self) -> Plan:
        """The plan whose units it runs."""
        return self._plan

    def __enter__(self) -> Self:
        """There is nothing to start."""
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to end."""

    def turn(self, plan: Plan, uri: str) -> None:
        """There is nothing to turn."""

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """There are no samples."""

    def extract(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Yields a receipt for each unit at once."""
        yield from map(self._extractor.extract, units)

    def steppers(self) -> AbstractContextManager[AbstractSteppers]:
        """Nobody steps."""
        raise NotImplementedError

    def fold(self, receipt: Receipt) -> None:
        """There is nothing to fold."""

    def reduce(self) -> None:
        """There is nothing to reduce."""


@final
@dataclasses.dataclass(frozen=True)
class Stamp:
    """When a unit's receipt was told to the user: on the wall, and in CPU seconds of all of the driver's threads."""

    wall: float
    cpu: float


def measure(effort: Effort) -> list[Finding]:
    """Runs the driver's loop over idle workers, in process and on Ray."""
    with scratch() as folder:
        model = tiny_model(folder / "model")
        plan, run = lay_out(Setting(8, 8, workers=2, model=model), folder)
        plan = _of_units(plan, NUM_UNITS[effort])
        alone = _stamps(IdleWorkers(plan, run.uri), run)
        with mock.patch("pipeline.extract.Extractor", IdleExtractor):
            on_ray = _stamps(RayWorkers(plan, run.uri), run)
    title = f"driver's work a unit over {NUM_UNITS[effort]:,} idle units"
    return [
        _finding(f"{title}, in process, CPU", alone, lambda stamp: stamp.cpu),
        _finding(f"{title}, on Ray, CPU of all its threads", on_ray, lambda stamp: stamp.cpu),
        _finding(f"{title}, on Ray, wall time, waiting for actors included", on_ray, lambda stamp: stamp.wall),
    ]


def _of_units(plan: Plan, count: int) -> Plan:
    """The same plan with so many units on its two sides together."""
    side = SideFacts(UNIT_SIZE * count // 2, "idle")
    spec = {**plan.spec, "compute": {**plan.spec["compute"], "unit_size": UNIT_SIZE}}
    return dataclasses.replace(plan, spec=spec, source=side, target=side)


def _stamps(workers: AbstractWorkers, storage: AbstractStorage) -> list[Stamp]:
    """Does what `jobs.fit` does with each unit that lands, a progress bar included; returns a stamp for each."""
    stamps: list[Stamp] = []
    tally, disk = Tally(workers.plan), Disk(storage, workers.plan)
    with Path(os.devnull).open("w") as nowhere, shown(Console(file=nowhere, force_terminal=True)) as listen, workers:
        stages = Stages(_stamping(listen, stamps))
        with stages.stage("extract", workers.plan.num_prompts, 0, "prompts"):
            for receipt in workers.extract(workers.plan.units()):
                workers.fold(receipt)
                stages.advance("extract", receipt.num_prompts)
                tally.add(receipt)
                tally.check()
                disk.add(receipt)
    return stamps


def _stamping(listen: Listener, stamps: list[Stamp]) -> Listener:
    def tell(event: Event) -> None:
        listen(event)
        if isinstance(event, Advanced):
            stamps.append(Stamp(time.perf_counter(), time.process_time()))

    return tell


def _finding(claim: str, stamps: Sequence[Stamp], clock: Callable[[Stamp], float]) -> Finding:
    """The mean over each window of `WINDOW` units: median, lowest and highest of them."""
    marks = [clock(stamp) for stamp in stamps[::WINDOW]]
    means = [1000 * (after - before) / WINDOW for before, after in itertools.pairwise(marks)]
    note = f"the first {WINDOW:,} units took {means[0]:.3f} ms each, the last {means[-1]:.3f} ms"
    return Finding(claim, "ms", Spread.of(means), Wanted("under", 5.0), (note,))
