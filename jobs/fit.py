"""Fitting a steer from a spec: plan, reuse, extract, reduce, fit, save. The same call on the same place resumes."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from act.steer import Steer
from jobs.errors import SameNameError, TakenNameError
from jobs.hands import Hands
from jobs.stages import Stages, read_timings
from pipeline import artifact, catalogue, reuse
from pipeline.disk import Disk
from pipeline.errors import DamagedRunError, RunNotFoundError
from pipeline.fit import fit as fit_maps
from pipeline.folder import LEASE, PLAN, TIMINGS, RunFolder
from pipeline.inputs import Inputs, same_numerics
from pipeline.laws import Laws
from pipeline.layout import lay_out
from pipeline.lease import Lease
from pipeline.ledger import REPAIR, Ledger
from pipeline.models import AbstractCheckpoint
from pipeline.plan import as_begun, check_free, make_plan, read_plan, settle
from pipeline.reduce import Reducer, shares
from pipeline.repair import check_repairable, repair
from pipeline.reuse import Found
from pipeline.sequential.drive import SequentialFit, check_maps
from pipeline.storage import AbstractStorage, storage_at
from pipeline.tally import Tally
from pipeline.verify import is_run
from pipeline.workers import AbstractWorkers
from schemas import record
from schemas.events import Listener, ignore
from schemas.job import Job, from_base, read_job
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName, Unit
from schemas.receipt import Receipt
from schemas.timings import Timings

#: What a fit does about damage in a run: it stops at what it comes across, or looks for all of it first and mends it.
OnDamage = Literal["refuse", "repair"]

#: Where the runs of several specs keep their laws.
LAWS_FOLDER = "laws"

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


def plan(spec: Path, cache: Path) -> Plan:
    """Returns the plan of a spec. Writes nothing.

    Raises:
        SpecError: The spec is refused.
        InputError: It names something that is not there or does not fit.
    """
    job = read_job(spec)
    return make_plan(job, spec.parent, cache)[0]


def fit(
    spec: Path,
    run: str | Path,
    cache: Path,
    listen: Listener = ignore,
    *,
    wait: float = 0.0,
    damage: OnDamage = "refuse",
) -> Fitted:
    """Fits a steer into a place, from wherever an earlier start of the same spec left off.

    Args:
        spec: The YAML file.
        run: The run folder, or a URL; made if missing.
        cache: Folder for converted checkpoints.
        listen: Takes the events of the run.
        wait: Seconds to wait for another driver that works on the run.
        damage: ``repair`` looks for damage first, and mends it.

    Raises:
        SpecError: The spec is refused.
        InputError: It names something that is not there, or the folder holds another run; nothing was written.
        LossError: Too many prompts gave no activation.
        StorageError: The storage refuses, or what was written is damaged.
        ResumableError: The run stopped; the same call goes on.
    """
    with Hands() as hands:
        return _fit(hands, spec, read_job(spec), storage_at(run), cache, listen, wait, damage)


def fit_all(
    specs: Sequence[Path],
    runs: str | Path,
    cache: Path,
    listen: Listener = ignore,
    *,
    wait: float = 0.0,
    damage: OnDamage = "refuse",
) -> Iterator[Fitted]:
    """Fits the steers of several specs, each into a folder of its name, and yields them.

    They share a catalogue of laws, so that a side that several have is run once; and workers, so that a model is loaded
    once.

    Args:
        specs: The YAML files. Where a spec names no catalogue, it is ``laws`` beside the runs.
        runs: The folder of the runs, or its URL.
        cache: Folder for converted checkpoints.
        listen: Takes the events of the runs.
        wait: Seconds to wait for another driver that works on a run.
        damage: ``repair`` looks for damage first, and mends it.

    Raises:
        SpecError: A spec is refused; no run was begun then.
        SameNameError: Two specs have one name.
        TakenNameError: A spec has the name of the folder of laws.
        Exception: As `fit`; the runs before it are done.
    """
    jobs = {spec: read_job(spec) for spec in specs}
    names = Counter(job.name for job in jobs.values())
    for name, count in names.items():
        if count > 1:
            raise SameNameError(name, count)
        if name == LAWS_FOLDER:
            raise TakenNameError(name)
    place = str(runs).rstrip("/")
    with Hands(runs=len(jobs)) as hands:
        for spec, job in jobs.items():
            store = job.store.model_copy(
                update={"laws": job.store.laws or from_base(f"{place}/{LAWS_FOLDER}", Path.cwd())}
            )
            storage = storage_at(f"{place}/{job.name}")
            yield _fit(hands, spec, job.model_copy(update={"store": store}), storage, cache, listen, wait, damage)


def _fit(
    hands: Hands,
    spec: Path,
    job: Job,
    storage: AbstractStorage,
    cache: Path,
    listen: Listener,
    wait: float,
    damage: OnDamage = "refuse",
) -> Fitted:
    stages = Stages(listen)
    inputs = Inputs.of(job.located(spec.parent), spec.read_bytes())
    if damage == "refuse" and inputs is not None and inputs == Inputs.written(storage):
        finished = _finished_before(storage)
        if finished is not None:
            catalogue.add(job.located(spec.parent), storage, finished.plan)
            return finished
    with stages.stage("plan"):
        job = _standing_alone(job, spec.parent, storage)
        planned, checkpoint = hands.plan(job, spec.parent, cache)
    located = job.located(spec.parent)
    if damage == "repair" and is_run(storage):
        check_repairable(storage, planned)
        with stages.stage("repair"), Lease(storage, seconds=job.failures.lease).held(wait=wait):
            repair(storage, planned, located, spec.read_bytes(), stages.notice)
    check_free(storage, planned)
    planned = as_begun(planned, storage)
    finished = _finished(storage, planned)
    if finished is None:
        finished = fit_begun(hands, Begun(storage, planned, located, spec.read_bytes(), checkpoint), stages, wait)
    else:
        catalogue.add(located, storage, planned)
    if inputs is not None:
        inputs.write(storage)
    return finished


def _finished_before(storage: AbstractStorage) -> Fitted | None:
    """Returns a finished run whose inputs are as they were, without reading them; None if something is missing."""
    try:
        planned = read_plan(storage)
    except RunNotFoundError:
        return None
    return _finished(storage, planned) if same_numerics(planned) else None


def _standing_alone(job: Job, base: Path, storage: AbstractStorage) -> Job:
    """Returns a job that goes on from its own run, where that is begun and the run that it extends is gone.

    The places of all prompts are those of the run's own.
    """
    extends = job.located(base).extends
    if extends is None or storage_at(extends).exists(PLAN) or not storage.exists(PLAN):
        return job
    return job.model_copy(update={"extends": storage.uri})


def fit_begun(hands: Hands, begun: "Begun", stages: Stages, wait: float) -> Fitted:
    """Does what is missing of a run, under its lease, and returns what there is then.

    Args:
        hands: Whoever runs units.
        begun: The run.
        stages: Tells and times the stages.
        wait: Seconds to wait for another driver that works on the run.

    Raises:
        Exception: As `fit`, but for what it refuses.
    """
    lease = Lease(begun.storage, seconds=begun.located.failures.lease)
    with _tidy(begun.storage, lease), lease.held(wait=wait):
        return _Start(begun, lease, hands, stages).fit()


@contextmanager
def _tidy(storage: AbstractStorage, lease: Lease) -> Iterator[None]:
    """A context after which a place that no run came of is as it was, unless another process is at it."""
    try:
        yield
    finally:
        if lease.last_epoch and not storage.exists(PLAN):
            for key in storage.keys(LEASE):
                if key.startswith(f"{LEASE}/{lease.last_epoch:08}."):
                    storage.delete(key)
            storage.remove_if_empty()


def _finished(storage: AbstractStorage, plan: Plan) -> Fitted | None:
    """Returns a run that has all its receipts and its steer, which is left as it is; None if something is missing."""
    steer = artifact.find(storage, plan)
    if steer is None or next(Ledger(storage, plan).missing(), None) is not None:
        return None
    artifact.link(storage)
    tally = tallied(Ledger(storage, plan), plan)
    return Fitted(storage, plan, steer, tally, read_timings(storage))


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
class _Start:
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
            steer = fit_maps(self._plan, laws, self._tally, lambda: self._stages.advance("fit", 1))
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
