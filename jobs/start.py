"""One start of a run: does what is missing of it, under its lease."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from act.steer import Steer
from jobs.hands import Hands
from jobs.stages import Stages, read_timings
from pipeline import artifact, catalogue, reuse
from pipeline.disk import Disk
from pipeline.errors import DamagedRunError
from pipeline.fit import fit as fit_maps
from pipeline.folder import LEASE, TIMINGS, RunFolder
from pipeline.former import former_of
from pipeline.laws import Laws
from pipeline.layout import lay_out
from pipeline.lease import Lease
from pipeline.ledger import REPAIR, Ledger
from pipeline.models import AbstractCheckpoint
from pipeline.plan import settle
from pipeline.reduce import Reducer, shares
from pipeline.reuse import Found
from pipeline.sequential.drive import SequentialFit, check_maps
from pipeline.storage import AbstractStorage
from pipeline.tally import Tally
from pipeline.workers import AbstractWorkers
from schemas import record
from schemas.job import Job
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName, Unit
from schemas.receipt import Receipt
from schemas.timings import Timings

#: Seconds after which a driver makes sure again that the run is its own.
CHECK_EVERY = 1.0

#: Most damages of another run that are told.
MOST_TOLD = 3


@final
@dataclass(frozen=True)
class Fitted:
    """What a fit left behind.

    Args:
        storage: Where the run lies.
        plan: The plan.
        steer: The steer, as saved.
        tally: What the receipts say together.
        timings: How long it took, over all starts.
    """

    storage: AbstractStorage
    plan: Plan
    steer: Steer
    tally: Tally
    timings: Timings

    @property
    def place(self) -> str:
        """Where a person finds the steer."""
        return artifact.opened(self.storage)

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """The receipt of every unit, read anew."""
        return tuple(Ledger(self.storage, self.plan).receipts())


@final
@dataclass(frozen=True)
class Begun:
    """A run that has a place and a plan.

    Args:
        storage: Where it lies.
        plan: Its plan.
        located: The job, with absolute paths.
        spec: The file that it was read from.
        checkpoint: The model on disk.
    """

    storage: AbstractStorage
    plan: Plan
    located: Job
    spec: bytes
    checkpoint: AbstractCheckpoint


@final
class Start:
    """One start of a run, by the driver that holds its lease.

    Args:
        run: The run.
        lease: Checked before anything is published that is the driver's alone.
        hands: Whoever runs units.
        stages: Tells and times the stages.
    """

    def __init__(self, run: Begun, lease: Lease, hands: Hands, stages: Stages) -> None:
        self._run, self._storage, self._plan = run, run.storage, run.plan
        self._lease, self._hands, self._stages = lease, hands, stages
        self._ledger = Ledger(self._storage, self._plan)
        self._tally, self._disk = Tally(self._plan), Disk(self._storage, self._plan)
        self._checked_at = time.monotonic()

    def fit(self) -> Fitted:
        """Does what is missing, and returns what there is then."""
        self._storage.sweep(but=LEASE)
        for receipt in self._ledger.receipts():
            self._tally.add(receipt)
            self._disk.add_earlier(receipt)
        self._tally.check()
        wanting = {unit.side for unit in self._ledger.missing()}
        hits = catalogue.hits(self._run.located, self._plan, wanting)
        if wanting - hits.keys():  # before anything is written: a model that cannot be loaded leaves no run
            self._workers()
        settle(self._plan, self._storage)
        lay_out(self._storage, self._plan, self._run.located, self._run.spec)
        with _timed(self._storage, self._plan, self._stages) as landed:
            self._reuse(hits)
            self._extract(landed)
            self._tally = tallied(self._ledger, self._plan)  # workers of a driver that died may have landed some more
            self._announce()
            steer = artifact.find(self._storage, self._plan) if not wanting else None
            steer = steer or self._fit()
        catalogue.add(self._run.located, self._storage, self._plan)
        return Fitted(self._storage, self._plan, steer, self._tally, read_timings(self._storage))

    def _workers(self) -> AbstractWorkers:
        """Returns the workers, which are started when they are first wanted."""
        self._hands.start(self._plan, self._storage.uri, self._run.checkpoint, self._stages)
        return self._hands.workers

    def _count(self, receipt: Receipt) -> None:
        """Counts a unit that landed; now and then makes sure that the run is still ours."""
        self._tally.add(receipt)
        self._tally.check()
        if time.monotonic() - self._checked_at >= CHECK_EVERY:
            self._lease.check()
            self._checked_at = time.monotonic()
        self._disk.add(receipt)

    def _reuse(self, hits: Mapping[SideName, Found]) -> None:
        """Takes over the units that lie ready elsewhere."""
        obstacles: dict[str, None] = {}
        for side in SIDES:
            found = hits.get(side) or reuse.earlier(self._run.located, side)
            if found is None:
                continue
            obstacle = reuse.obstacle(self._plan, found)
            if obstacle is not None:
                obstacles[f"no unit of {found.storage.uri} can be used again: {obstacle}"] = None
                continue
            damages: list[str] = []
            with self._stages.stage("reuse", self._plan.num_units(side), 0, "units"):
                for receipt in reuse.take(self._storage, self._plan, found, self._settle_frame, damages.append):
                    self._count(receipt)
                    self._stages.advance("reuse", 1)
            for damage in damages[:MOST_TOLD]:
                self._stages.notice(damage)
            if damages and side in hits:
                catalogue.forget(self._run.located, self._plan, side)
        for sentence in obstacles:
            self._stages.notice(sentence)

    def _settle_frame(self, law: LawName) -> None:
        if not self._storage.exists(RunFolder(self._storage).frame(law)):
            self._workers().settle_frames([law])

    def _extract(self, landed: "_Landed") -> None:
        """Runs the missing units, and folds them all.

        Raises:
            LossError: More prompts are lost than the spec allows.
        """
        if next(self._ledger.missing(), None) is None:
            self._merge()
            return
        workers = self._workers()
        with self._stages.stage("frames"):
            workers.settle_frames(self._laws())
        with self._stages.stage("extract", self._plan.num_prompts, self._tally.num_prompts, "prompts"):
            for receipt in self._ledger.receipts() if self._plan.sketched else ():
                workers.fold(receipt)
            for receipt in workers.extract(self._apart()):
                self._land(receipt, workers, landed)
        if self._plan.sequential:
            self._sequence(workers, landed)
        self._lease.check()
        if self._plan.sketched:
            with self._stages.stage("reduce"):
                workers.reduce()
                self._lease.check()
                self._disk.compact()
        self._hands.done()
        if self._plan.sequential:
            self._hands.rest()  # who stepped is gone, and who extracted before

    def _apart(self) -> Iterator[Unit]:
        """Yields the units that are missing and need no others: of a sequential fit those of the target."""
        return (unit for unit in self._ledger.missing() if not self._plan.sequential or unit.side == "target")

    def _sequence(self, workers: AbstractWorkers, landed: "_Landed") -> None:
        """Fits the sites of a sequential fit, one after the other, and stores the source's units."""
        if all(unit.side == "target" for unit in self._ledger.missing()):
            return
        with workers.steppers() as steppers:
            sequence = SequentialFit(self._storage, self._plan, steppers)
            with self._stages.stage("sequence", len(self._plan.sites), len(sequence.known()), "sites"):
                for receipt in sequence.run(self._on_site):
                    self._land(receipt, workers, landed)

    def _on_site(self) -> None:
        self._stages.advance("sequence", 1)
        self._lease.check()

    def _land(self, receipt: Receipt, workers: AbstractWorkers, landed: "_Landed") -> None:
        workers.fold(receipt)
        landed.prompts += receipt.num_prompts
        self._stages.advance("extract", receipt.num_prompts)
        self._count(receipt)

    def _merge(self) -> None:
        """Merges what an earlier start left unmerged, where sketches of units are not to stay."""
        if self._plan.compacts:
            for sites in shares(self._plan):
                Reducer(self._plan, self._storage.uri, sites).finish()
            self._disk.compact()

    def _laws(self) -> list[LawName]:
        """The laws that units which are missing have samples of."""
        wanted = {law for unit in self._apart() for law in LAWS if self._plan.sketches(law, unit)}
        return [law for law in LAWS if law in wanted]

    def _fit(self) -> Steer:
        if len(self._tally.models) != 1:
            problem = "its workers ran models with different weights"
            raise DamagedRunError(self._storage.place("receipts"), problem, REPAIR)
        laws = Laws(self._storage, self._plan)
        with self._stages.stage("fit", len(self._plan.sites), 0, "sites"):
            steer = fit_maps(
                self._plan,
                laws,
                self._tally,
                lambda: self._stages.advance("fit", 1),
                former_of(self._storage, self._plan),
            )
        if self._plan.sequential:
            check_maps(self._storage, self._plan, steer)
        self._tell_misfits(laws)
        with self._stages.stage("save"):
            self._lease.check()
            return artifact.publish(self._storage, steer)

    def _announce(self) -> None:
        if self._tally.num_truncated:
            self._stages.notice(f"{_prompts(self._tally.num_truncated)} longer than max_tokens and cut to it")
        if self._tally.num_lost:
            self._stages.notice(
                f"{_prompts(self._tally.num_lost)} left out for giving no activation; actmap status says which and why"
            )

    def _tell_misfits(self, laws: Laws) -> None:
        found = [laws.misfits(number) for number in range(len(self._plan.sites))]
        mended, left = sum(one.mended for one in found), sum(one.left for one in found)
        if mended:
            self._stages.notice(
                f"the frames of {mended} laws of neurons did not fit; they were counted anew from the activations"
            )
        if left:
            mends = any(self._plan.law[side].misfits == "mend" for side in SIDES)
            remedy = (
                "they hold few values, or values far apart"
                if mends
                else "to count them anew run into another folder with `law: {misfits: mend}`"
            )
            self._stages.notice(
                f"the frames of {left} laws of neurons do not fit: their errors are large, as the card says; {remedy}"
            )


def _prompts(count: int) -> str:
    return "1 prompt was" if count == 1 else f"{count} prompts were"


@final
@dataclass
class _Landed:
    """Prompts that went through the model at this start."""

    prompts: int = 0


@contextmanager
def _timed(storage: AbstractStorage, plan: Plan, stages: Stages) -> Iterator[_Landed]:
    """A context that gives a count for prompts that land, and adds this start's times to those of earlier ones.

    Also when it fails: what a start cost counts. A start that finds everything done costs nothing, and writes nothing.
    """
    landed = _Landed()
    try:
        yield landed
    finally:
        if landed.prompts or "fit" in stages.seconds:
            before = read_timings(storage)
            names = [*before.stages, *(name for name in stages.seconds if name not in before.stages)]
            summed = {name: before.stages.get(name, 0.0) + stages.seconds.get(name, 0.0) for name in names}
            timings = Timings(summed, plan.spec["compute"]["workers"], before.prompts + landed.prompts)
            storage.write(TIMINGS, record.seal(timings))


def tallied(ledger: Ledger, plan: Plan) -> Tally:
    """Returns what the receipts of a run say together.

    Raises:
        LossError: More prompts are lost than the plan allows.
    """
    tally = Tally(plan)
    for receipt in ledger.receipts():
        tally.add(receipt)
    tally.check()
    return tally
