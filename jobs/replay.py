"""Replaying a steer: everything that its card says is computed again, and compared bit for bit.

Units run as they did: quarantined prompts are masked from the start, and micro-batches that ran in pieces do so again.
Nothing is taken from a catalogue of laws, nor from the run that the spec extends; only the places of prompts that were
removed since that run are asked of it, for they are nowhere else.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import act
from act.steer import Steer
from jobs.fit import fit_begun
from jobs.hands import Hands
from jobs.stages import Stages
from jobs.start import Begun, Fitted
from pipeline import artifact
from pipeline.errors import OtherSteerError, ReplayError, RunNotFoundError
from pipeline.layout import lay_out
from pipeline.models import AbstractCheckpoint
from pipeline.pieces import Pieces
from pipeline.plan import check_free, settle
from pipeline.quarantine import RunRecords
from pipeline.repair import history
from pipeline.storage import AbstractStorage, storage_at
from schemas import record
from schemas.card import Card
from schemas.events import Listener, ignore
from schemas.job import Job, read_job
from schemas.plan import SIDES, Plan


@final
@dataclass(frozen=True)
class Replayed:
    """A steer that was computed again, with the same bits.

    Args:
        steer: The folder of the steer that was replayed.
        tensors: SHA-256 of its tensors.
        sites: How many sites it has.
        prompts: Prompts that went through the model again.
        run: The run that did it; None if it is gone.
    """

    steer: str
    tensors: str
    sites: int
    prompts: int
    run: str | None


def replay(
    steer: Path, base: Path, run: str | None, cache: Path, listen: Listener = ignore, wait: float = 0.0
) -> Replayed:
    """Computes a steer again from its card, and compares.

    Args:
        steer: The folder of the steer.
        base: Folder against which relative paths of its spec are resolved.
        run: Where to; the same call on the same place resumes. None takes a folder that is deleted at the end.
        cache: Folder for converted checkpoints.
        listen: Takes the events of the run.
        wait: Seconds to wait for another driver that works on the run.

    Raises:
        ActError: There is no steer, or it is damaged.
        ReplayError: It has no spec, or what its spec names computes other numbers here; says which.
        InputError: Its spec names something that is not there.
        OtherSteerError: The bits differ.
        StorageError: The storage refuses.
        ResumableError: The run stopped.
    """
    wanted = act.load(steer)
    if not wanted.card.plan:
        raise ReplayError(str(steer), "it was fitted in memory, and its card has no spec; wanted one that a run fitted")
    with _place(run) as place, Hands() as hands:
        fitted = _Replay(steer, wanted.card, base, storage_at(place)).fit(hands, cache, Stages(listen), wait)
    compare(steer, wanted, fitted.steer)
    card = wanted.card
    return Replayed(str(steer), card.tensors, len(card.sites), fitted.plan.num_prompts, run)


@contextmanager
def _place(run: str | None) -> Iterator[str]:
    if run is not None:
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="actmap-replay-") as folder:
        yield f"{folder}/run"


@final
class _Replay:
    """One replay.

    Args:
        steer: The folder of the steer.
        card: Its card.
        base: Folder against which relative paths are resolved.
        storage: Where to.
    """

    def __init__(self, steer: Path, card: Card, base: Path, storage: AbstractStorage) -> None:
        self._steer, self._card, self._base, self._storage = str(steer), card, base, storage

    def fit(self, hands: Hands, cache: Path, stages: Stages, wait: float) -> Fitted:
        """Fits the steer anew."""
        spec = (json.dumps(self._card.spec, indent=1, sort_keys=True) + "\n").encode()  # YAML has JSON in it
        job = self._read(spec)
        with stages.stage("plan"):
            plan, checkpoint = self._plan(hands, job, cache)
        check_free(self._storage, plan)
        if artifact.current(self._storage) is not None:
            raise ReplayError(self._steer, f"{self._storage.uri} holds a finished run; name a new folder as --run")
        settle(plan, self._storage)
        located = self._known(job).located(self._base)
        lay_out(self._storage, plan, located, spec)
        self._remember(plan)
        alone = located.model_copy(update={"extends": None, "store": located.store.model_copy(update={"laws": None})})
        return fit_begun(hands, Begun(self._storage, plan, alone, spec, checkpoint), stages, wait)

    def _read(self, spec: bytes) -> Job:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "spec.yaml")
            path.write_bytes(spec)
            return read_job(path)

    def _known(self, job: Job) -> Job:
        """Returns the job without the run that it extends, unless prompts were removed: else it places none."""
        removed = self._card.source.num_removed + self._card.target.num_removed
        return job if removed else job.model_copy(update={"extends": None})

    def _plan(self, hands: Hands, job: Job, cache: Path) -> tuple[Plan, AbstractCheckpoint]:
        """Returns the plan, with the spec as the card has it.

        Raises:
            ReplayError: It is another one than the card's.
        """
        try:
            plan, checkpoint = hands.plan(self._known(job), self._base, cache)
        except RunNotFoundError as exc:
            problem = f"prompts were removed from its data, and only the run that it extends has their places: {exc}"
            raise ReplayError(self._steer, problem) from exc
        plan = dataclasses.replace(plan, spec=self._card.spec)
        if plan.fingerprint != self._card.plan:
            raise ReplayError(self._steer, _difference(self._card, plan))
        return plan, checkpoint

    def _remember(self, plan: Plan) -> None:
        """Writes down what became of prompts and micro-batches, so that units run as they did."""
        records, pieces = RunRecords(self._storage, plan), Pieces(self._storage)
        for side, card in zip(SIDES, (self._card.source, self._card.target), strict=True):
            units = {one.row // plan.unit_size for one in card.quarantined} | {one.unit for one in card.splits}
            for unit in (plan.unit(side, index) for index in sorted(units)):
                lost, splits = history(card, unit)
                if lost:
                    records.remember(unit, lost)
                if splits:
                    pieces.remember(unit, splits)


def _difference(card: Card, plan: Plan) -> str:
    """Returns why a plan computes other numbers than a card says, and what to do."""
    numerics = dataclasses.asdict(plan.numerics)
    for name in sorted(numerics.keys() | card.numerics.keys()):
        before, now = card.numerics.get(name), numerics.get(name)
        if before != now:
            return (
                f"its numerics are of another class, {name} was {_short(before, now)} and is {_short(now, before)}; "
                "replay it on a machine of its class"
            )
    if plan.model.fingerprint != card.checkpoint_fingerprint:
        return "the files of its model or tokenizer changed; wanted those that it was fitted on"
    for name, side in zip(SIDES, (card.source, card.target), strict=True):
        facts = plan.side(name)
        if (facts.fingerprint, facts.num_prompts, facts.num_removed) != (
            side.fingerprint,
            side.num_prompts,
            side.num_removed,
        ):
            count = f"{side.num_prompts:,} and now {facts.num_prompts:,}"
            return f"the prompts of the {name} changed, then {count}; wanted those that it was fitted on"
    sites = [(site.hookpoint, site.module_type, site.width) for site in card.sites]
    if [(site.hookpoint, site.module_type, site.width) for site in plan.sites] != sites:
        return "its hookpoints are other modules now; wanted the version of the model's code that it was fitted with"
    if plan.start:
        return "its plan is another one now; wanted the steer that it started from, and the actmap that fitted it"
    return "its plan is another one now; take the version of actmap that fitted it"


def _short(value: object, other: object) -> str:
    """Returns a value in few words; of two mappings, the first item that the other has not."""
    if isinstance(value, dict) and isinstance(other, dict):
        return next((f"{key} {value[key]}" for key in sorted(value) if value[key] != other.get(key)), "none")
    return str(value)


def compare(place: Path, wanted: Steer, found: Steer) -> None:
    """Compares two steers bit for bit.

    Raises:
        OtherSteerError: They differ; names the first site, or the first line of the card.
    """
    for site in wanted.card.sites:
        before, now = (steer.maps[site.hookpoint].tensors() for steer in (wanted, found))
        for part in before:
            if part not in now or before[part].numpy().tobytes() != now[part].numpy().tobytes():
                raise OtherSteerError(str(place), f"the {part} of {site.hookpoint} differs")
    for field in dataclasses.fields(Card):
        said = [record.dump({"": getattr(steer.card, field.name)}) for steer in (wanted, found)]
        if said[0] != said[1]:
            raise OtherSteerError(str(place), f"the {field.name} on its card differs")
