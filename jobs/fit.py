"""Fitting a steer from a spec: plan, reuse, extract, reduce, fit, save. The same call on the same place resumes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jobs.errors import SameNameError, TakenNameError
from jobs.hands import Hands
from jobs.stages import Stages, read_timings
from jobs.start import Begun, Fitted, Start, tallied
from pipeline import artifact, catalogue
from pipeline.errors import RunNotFoundError
from pipeline.folder import LEASE, PLAN
from pipeline.former import standing_alone
from pipeline.inputs import Inputs, same_numerics
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.plan import as_begun, check_free, make_plan, read_plan
from pipeline.repair import check_repairable, repair
from pipeline.storage import AbstractStorage, storage_at
from pipeline.verify import is_run
from schemas.events import Listener, ignore
from schemas.job import Job, from_base, read_job
from schemas.plan import Plan

#: What a fit does about damage in a run: it stops at what it comes across, or looks for all of it first and mends it.
OnDamage = Literal["refuse", "repair"]

#: Where the runs of several specs keep their laws.
LAWS_FOLDER = "laws"


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
    """Returns a job that goes on from its own run, where that is begun and what it goes on from is gone.

    The places of all prompts are those of the run's own, and it has a copy of the steer that it started from.
    """
    located = job.located(base)
    start = standing_alone(located, storage)
    if start != located.estimation.start:
        job = job.model_copy(update={"estimation": job.estimation.model_copy(update={"start": start})})
    extends = located.extends
    if extends is None or storage_at(extends).exists(PLAN) or not storage.exists(PLAN):
        return job
    return job.model_copy(update={"extends": storage.uri})


def fit_begun(hands: Hands, begun: Begun, stages: Stages, wait: float) -> Fitted:
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
        return Start(begun, lease, hands, stages).fit()


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
