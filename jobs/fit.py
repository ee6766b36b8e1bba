"""Fitting a steer from a spec: plan, extract, reduce, fit, save. The same call on the same folder resumes."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from act.errors import SteerFileError, SteerNotFoundError
from act.steer import Steer, load
from jobs.stages import Stages
from pipeline import prompts
from pipeline.errors import DamagedRunError, LossError, RunBusyError, StoreError
from pipeline.fit import fit as fit_maps
from pipeline.folder import RunFolder
from pipeline.laws import Laws
from pipeline.ledger import Ledger
from pipeline.plan import check_free, make_plan, settle
from pipeline.store import ActivationStore, SketchStore
from pipeline.workers import AbstractWorkers, InProcessWorkers
from schemas import files, record
from schemas.events import Listener, ignore
from schemas.job import Job, read_job
from schemas.plan import LAWS, SIDES, Plan, Unit
from schemas.receipt import Receipt
from schemas.timings import Timings


@final
@dataclass(frozen=True)
class Fitted:
    """What a fit left behind.

    Args:
        plan: The plan.
        steer: The steer, as saved.
        receipts: The receipt of every unit.
        timings: How long it took, over all starts.
    """

    plan: Plan
    steer: Steer
    receipts: Sequence[Receipt]
    timings: Timings


def plan(spec: Path, cache: Path) -> Plan:
    """Returns the plan of a spec. Writes nothing.

    Raises:
        SpecError: The spec is refused.
        InputError: It names something that is not there or does not fit.
    """
    job = read_job(spec)
    return make_plan(job, spec.parent, cache)[0]


def fit(spec: Path, run: Path, cache: Path, listen: Listener = ignore) -> Fitted:
    """Fits a steer into a run folder, from wherever an earlier start of the same spec left off.

    Args:
        spec: The YAML file.
        run: The run folder; made if missing.
        cache: Folder for converted checkpoints.
        listen: Takes the events of the run.

    Raises:
        SpecError: The spec is refused.
        InputError: It names something that is not there, or the folder holds another run; nothing was written.
        LossError: Too many prompts gave no activation.
        StorageError: A write was refused, or what was written is damaged.
        ResumableError: The run stopped; the same call goes on.
    """
    stages, folder = Stages(listen), RunFolder(run)
    with stages.stage("plan"):
        job = read_job(spec)
        planned, checkpoint = make_plan(job, spec.parent, cache)
    check_free(folder, planned)
    with _locked(folder), ExitStack() as stack:
        receipts, missing = Ledger(folder, planned).split(planned.units())
        workers = _workers(planned, folder)
        if missing:
            with stages.stage("model"):
                checkpoint.prepare()
            with stages.stage("workers"):  # before anything is written: a model that cannot be loaded leaves no run
                stack.enter_context(workers)
        settle(planned, folder)
        _lay_out(folder, planned, job.located(spec.parent), spec.read_bytes())
        with _timed(folder, planned, stages) as landed:
            _extract(workers, missing, receipts, landed, stages)
            receipts += landed
            if missing and planned.law.kind == "sketch":
                with stages.stage("reduce"):
                    workers.reduce(receipts)
            stack.close()
            _announce(receipts, stages)
            steer = _find_steer(folder, planned) or _fit(planned, folder, receipts, stages)
    return Fitted(planned, steer, receipts, _read_timings(folder))


def _workers(plan: Plan, folder: RunFolder) -> AbstractWorkers:
    if plan.spec["compute"]["workers"] == 0:
        return InProcessWorkers(plan, folder.root)
    from pipeline.cluster import RayWorkers  # Ray is slow to import

    return RayWorkers(plan, folder.root)


def _extract(
    workers: AbstractWorkers, missing: Sequence[Unit], done: Sequence[Receipt], landed: list[Receipt], stages: Stages
) -> None:
    """Runs the missing units, and adds their receipts to `landed`.

    Raises:
        LossError: More prompts are lost than the spec allows, now or in an earlier start.
    """
    losses = _Losses(workers.plan)
    losses.update(done)
    if not missing:
        return
    frames = [law for law in LAWS if any(workers.plan.sketches(law, unit) for unit in missing)]
    with stages.stage("frames"):
        workers.settle_frames(frames)
    finished = sum(receipt.num_prompts for receipt in done)
    with stages.stage("extract", workers.plan.num_prompts, finished, "prompts"):
        for receipt in done:
            workers.fold(receipt)
        for receipt in workers.extract(missing):
            workers.fold(receipt)
            landed.append(receipt)
            stages.advance("extract", receipt.num_prompts)
            losses.update([receipt])


def _find_steer(folder: RunFolder, plan: Plan) -> Steer | None:
    """Returns the steer of an earlier start, if there is one."""
    if not folder.steer.exists():
        return None
    redo = "delete this folder and run the same command again"
    try:
        steer = load(folder.steer)
    except (SteerFileError, SteerNotFoundError) as exc:
        raise DamagedRunError(str(folder.steer), str(exc), redo) from exc
    if steer.card.plan != plan.fingerprint:
        raise DamagedRunError(str(folder.steer), "it is the steer of another plan", redo)
    return steer


def _fit(plan: Plan, folder: RunFolder, receipts: Sequence[Receipt], stages: Stages) -> Steer:
    with stages.stage("fit", len(plan.sites), 0, "sites"):
        checked = list(Ledger(folder, plan).verify(receipts))
        if len({receipt.model for receipt in checked}) != 1:
            raise DamagedRunError(str(folder.root / "receipts"), "its workers ran models with different weights")
        laws = Laws(plan, folder.root, checked)
        steer = fit_maps(plan, laws, checked, lambda: stages.advance("fit", 1))
    _tell_misfits(plan, laws, stages)
    with stages.stage("save"):
        return steer.save(folder.steer)


def _lay_out(folder: RunFolder, plan: Plan, located: Job, spec: bytes) -> None:
    """Writes what a run needs besides its plan: the spec as it was given, each side's prompts by unit, the store."""
    folder.make()
    if plan.keeps_activations:
        ActivationStore(folder.activations, plan).create()
    SketchStore(folder.sketches, plan).create()
    if not folder.spec.exists() or folder.spec.read_bytes() != spec:
        files.publish(folder.spec, spec)
    for name in SIDES:
        path, wanted = folder.prompts(name), plan.side(name).fingerprint
        if not path.exists():
            prompts.write_snapshot(getattr(located, name), path, plan.unit_size)
        found = prompts.Snapshot.open(path).fingerprint
        if found != wanted:
            raise DamagedRunError(
                str(path), "its prompts are not those of the plan; the input changed while it was read"
            )


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """A context in which no other process works on the run. The lock ends with the process, however that ends.

    A folder that was made for the lock alone goes again when nothing came of the run.
    """
    made = not folder.root.exists()
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        file = folder.lock.open("a")
    except OSError as exc:
        raise StoreError(str(folder.root), exc.strerror or str(exc)) from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != folder.lock.stat().st_ino:
                raise RunBusyError(str(folder.root))  # another process took the file away between our two calls
        except (BlockingIOError, FileNotFoundError) as exc:
            raise RunBusyError(str(folder.root)) from exc
        try:
            yield
        finally:
            if not folder.plan.exists():
                folder.lock.unlink(missing_ok=True)
                if made:
                    with suppress(OSError):  # it holds something after all
                        folder.root.rmdir()


@final
class _Losses:
    """The prompts lost so far. Kept as a running list, so that a unit costs the same however many went before it.

    Args:
        plan: The plan, which says how many may be lost.
    """

    def __init__(self, plan: Plan) -> None:
        self._allowed = int(plan.spec["failures"]["quarantine_at_most"] * plan.num_prompts)
        self._lost: list[str] = []

    def update(self, receipts: Sequence[Receipt]) -> None:
        """Counts the losses of some more receipts.

        Raises:
            LossError: They are more than the plan allows.
        """
        for receipt in receipts:
            self._lost += [f"{receipt.side} row {one.row} ({one.reason})" for one in receipt.quarantined]
        if len(self._lost) > self._allowed:
            raise LossError(len(self._lost), self._allowed, self._lost[:3])


def _announce(receipts: Sequence[Receipt], stages: Stages) -> None:
    truncated = sum(receipt.num_truncated for receipt in receipts)
    lost = sum(len(receipt.quarantined) for receipt in receipts)
    if truncated:
        stages.notice(f"{_prompts(truncated)} longer than max_tokens and cut to it")
    if lost:
        stages.notice(f"{_prompts(lost)} left out for giving no activation; the receipts say which and why")


def _tell_misfits(plan: Plan, laws: Laws, stages: Stages) -> None:
    found = [laws.misfits(number) for number in range(len(plan.sites))]
    mended, left = sum(one.mended for one in found), sum(one.left for one in found)
    if mended:
        stages.notice(
            f"the frames of {mended} laws of neurons did not fit; they were counted anew from the activations"
        )
    if left:
        stages.notice(
            f"the frames of {left} laws of neurons do not fit, and their errors are large, as the card says; "
            + (
                "they hold few values, or values far apart"
                if plan.keeps_activations
                else "to count them anew run into another folder with `store: {activations: all}`"
            )
        )


def _prompts(count: int) -> str:
    return "1 prompt was" if count == 1 else f"{count} prompts were"


@contextmanager
def _timed(folder: RunFolder, plan: Plan, stages: Stages) -> Iterator[list[Receipt]]:
    """A context that gives a list for receipts that land, and adds this start's times to those of earlier ones.

    Also when it fails: what a start cost counts. A start that finds everything done costs nothing, and writes nothing.
    """
    landed: list[Receipt] = []
    try:
        yield landed
    finally:
        if landed or "fit" in stages.seconds:
            before = _read_timings(folder)
            names = [*before.stages, *(name for name in stages.seconds if name not in before.stages)]
            summed = {name: before.stages.get(name, 0.0) + stages.seconds.get(name, 0.0) for name in names}
            num_prompts = before.prompts + sum(receipt.num_prompts for receipt in landed)
            timings = Timings(summed, plan.spec["compute"]["workers"], num_prompts)
            files.publish(folder.timings, record.dump(timings))


def _read_timings(folder: RunFolder) -> Timings:
    try:
        return record.load(Timings, folder.timings.read_bytes())
    except FileNotFoundError:
        return Timings()
    except record.RecordError as exc:
        raise DamagedRunError(str(folder.timings), str(exc), "delete it and run the same command again") from exc
