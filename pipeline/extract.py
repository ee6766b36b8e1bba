"""Extraction: one unit of prompts through the model, a file each of its activations and sketches, the receipt last."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from pipeline import machine
from pipeline.errors import BatchMemoryError
from pipeline.folder import RunFolder
from pipeline.forward import BatchSink, Forward
from pipeline.frames import choose_frame, write_frame
from pipeline.ledger import Ledger
from pipeline.models import Packed
from pipeline.pieces import Pieces
from pipeline.prompts import Snapshot
from pipeline.sketch import HistogramSketch
from pipeline.sketching import Sketcher, counting
from pipeline.storage import storage_at
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.activations import Block, kept_rows
from schemas import record
from schemas.plan import LAWS, LawName, Plan, SideName, Unit, side_of
from schemas.receipt import Output, Quarantined, Receipt, Split, packed_tokens
from schemas.treatment import Crumb, Probe, Treatment

EMPTY = "empty: no tokens"
TOO_LARGE = "out of memory, even alone"

_PLAIN = Treatment()


@final
@dataclass(frozen=True, eq=False)
class Ran:
    """What a unit's forwards left.

    Args:
        packed: How its prompts were packed.
        block: Their samples.
        tokens: The sketches of their tokens, a site each; None where the unit has none.
        treatment: The treatment that it took in the end.
        lost: The prompts that do not count, and why.
        seconds: What the forwards took.
    """

    packed: Packed
    block: Block
    tokens: list[HistogramSketch] | None
    treatment: Treatment
    lost: tuple[Quarantined, ...]
    seconds: float


@final
class Extractor:
    """Runs units of prompts through the model, and stores their pooled activations and sketches.

    A plain class: only `pipeline.cluster` makes it an actor, so tests call it in process. The model is loaded by
    `ready`, or by the first unit.

    Args:
        plan: The plan.
        uri: Where the run lies.
    """

    def __init__(self, plan: Plan, uri: str) -> None:
        self.forward = Forward(plan)
        self._aim(plan, uri)

    def ready(self) -> int:
        """Loads the model, and returns the process id of the worker.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        self.forward.fingerprint  # noqa: B018 - loads the model
        return os.getpid()

    def turn(self, plan: Plan, uri: str) -> None:
        """Goes on with another run, whose model and numerics are the same: the model stays loaded."""
        self.forward = self.forward.turned(plan)
        self._aim(plan, uri)

    def _aim(self, plan: Plan, uri: str) -> None:
        self._plan, self._storage = plan, storage_at(uri)
        self._folder = RunFolder(self._storage)
        self._sketcher = Sketcher(plan, self._storage)
        self._activations = ActivationStore(self._storage, plan)
        self._sketches = SketchStore(self._storage, plan)
        self._ledger = Ledger(self._storage, plan)
        self._snapshots: dict[SideName, Snapshot] = {}
        self._pieces = Pieces(self._storage)

    def settle_frame(self, law: LawName, treatment: Treatment = _PLAIN) -> None:
        """Chooses and writes the frame of a law, unless there is one. It depends on the plan, and on masked prompts."""
        unit = self._plan.unit(side_of(law), 0)
        while not self._storage.exists(self._folder.frame(law)):
            prompts = self.prompts(unit)
            on_batch = self._breadcrumbs(unit, treatment.attempt) if treatment.careful else None
            try:
                frame = choose_frame(self._plan, law, self.forward, prompts, treatment, on_batch)
            except BatchMemoryError as exc:
                treatment = lighter(treatment, unit, exc)
            else:
                write_frame(self._storage, self._plan, law, frame)

    def extract(self, unit: Unit, treatment: Treatment = _PLAIN) -> Receipt:
        """Stores one unit and commits its receipt.

        Safe to retry on any worker: the receipt is written last, under the unit's name, and a unit that already has
        one is not run again.
        """
        return self._ledger.find(unit) or self._extract(unit, self.as_before(unit, treatment))

    def rehearse(self, unit: Unit, treatment: Treatment = _PLAIN) -> Receipt:
        """Runs one unit as `extract` does, and returns its receipt, but counts, stores and commits nothing."""
        begin = time.perf_counter()
        ran = self._run(unit, self.prompts(unit), self.as_before(unit, treatment), counts=False)
        return self._receipt(unit, ran, (), begin)

    def probe(self, probe: Probe) -> None:
        """Runs one micro-batch with some prompts alone. That it comes back is the answer."""
        self.forward.probe(self.prompts(probe.unit), probe.unit.start, probe)

    def prompts(self, unit: Unit) -> list[str | None]:
        """Returns the prompts of a unit."""
        return self._snapshot(unit.side).unit(unit.index)

    def as_before(self, unit: Unit, treatment: Treatment) -> Treatment:
        """Returns a treatment with the pieces that a replay or a repair wrote down for the unit."""
        return dataclasses.replace(treatment, splits=treatment.splits or self._pieces.known(unit))

    def _extract(self, unit: Unit, treatment: Treatment) -> Receipt:
        begin = time.perf_counter()
        return self.keep(unit, self._run(unit, self.prompts(unit), treatment), begin)

    def keep(self, unit: Unit, ran: Ran, begin: float) -> Receipt:
        """Stores what a unit's forwards left, and commits its receipt.

        Args:
            unit: The unit.
            ran: What they left.
            begin: When the unit began, by `time.perf_counter`.
        """
        return self._ledger.commit(unit, self._receipt(unit, ran, tuple(self._write(unit, ran)), begin))

    def _receipt(self, unit: Unit, ran: Ran, outputs: tuple[Output, ...], begin: float) -> Receipt:
        return Receipt(
            plan=self._plan.fingerprint,
            model=self.forward.fingerprint,
            side=unit.side,
            unit=unit.index,
            attempt=ran.treatment.attempt,
            origin="",
            num_prompts=unit.num_prompts,
            tokens=packed_tokens(_counted(unit, ran)),
            num_truncated=ran.packed.num_truncated,
            quarantined=ran.lost,
            splits=_splits(ran),
            outputs=outputs,
            seconds=time.perf_counter() - begin,
            compute_seconds=ran.seconds,
            worker=os.getpid(),
            peak_memory=machine.peak_memory(),
        )

    def _run(self, unit: Unit, prompts: Sequence[str | None], treatment: Treatment, *, counts: bool = True) -> Ran:
        """Runs a unit until nothing more is to be masked or split; from its start each time, for sinks have counted."""
        while True:
            tokens = self._token_sketches(unit) if counts else None
            start = time.perf_counter()
            try:
                packed, block = self.forward.run(
                    prompts,
                    unit.start,
                    None if tokens is None else counting(tokens),
                    treatment,
                    self._breadcrumbs(unit, treatment.attempt) if treatment.careful else None,
                )
            except BatchMemoryError as exc:
                treatment = lighter(treatment, unit, exc)
                continue
            lost = self.judge(unit, packed, block, treatment)
            odd = tuple(one for one in lost if one not in treatment.masked and packed.num_tokens[one.row - unit.start])
            if tokens is None or not odd:
                return Ran(packed, block, tokens, treatment, lost, time.perf_counter() - start)
            treatment = dataclasses.replace(treatment, masked=(*treatment.masked, *odd))

    def _token_sketches(self, unit: Unit) -> list[HistogramSketch] | None:
        return self._sketcher.empty("tokens", self.forward.device) if self._plan.sketches("tokens", unit) else None

    def _breadcrumbs(self, unit: Unit, attempt: int) -> BatchSink:
        """Returns what notes each step before it is taken, for whoever asks once this worker is lost."""

        def note(batch: int | None, rows: tuple[int, ...]) -> None:
            crumb = Crumb(unit.side, unit.index, attempt, batch, rows, os.getpid())
            self._storage.note(self._folder.crumb(unit), record.seal(crumb))

        return note

    def _write(self, unit: Unit, ran: Ran) -> Iterator[Output]:
        """Writes what a unit leaves, and yields what the receipt says of each file."""
        if self._plan.kept(unit.side) != "none":
            data = self._activations.encode(unit, ran.block)
            yield self._ledger.publish(unit, "activations", self._activations.shard(unit), data)
        for law in LAWS:
            if self._plan.sketches(law, unit):
                kept = kept_rows(_counted(unit, ran), self._plan.rows_per_prompt)
                sketches = ran.tokens if law == "tokens" else self._sketcher.pooled(law, ran.block, kept)
                assert sketches is not None, "the tokens were sketched"
                data = self._sketches.encode(law, unit.index, self._sketcher.words(law, sketches))
                yield self._ledger.publish(unit, law, self._sketches.shard(law, unit.index), data)

    def _snapshot(self, side: SideName) -> Snapshot:
        if side not in self._snapshots:
            self._snapshots[side] = Snapshot.open(self._storage, self._folder.prompts(side))
        return self._snapshots[side]

    def judge(self, unit: Unit, packed: Packed, block: Block, treatment: Treatment) -> tuple[Quarantined, ...]:
        """Returns the prompts that do not count: masked ones, those without tokens, those that are not finite."""
        masked = {one.row: one for one in treatment.masked}
        removed = self._snapshot(unit.side).removed(unit.index)
        per_prompt, lost = self._plan.rows_per_prompt, []
        for row, count in enumerate(packed.num_tokens):
            if row in removed:
                continue
            if unit.start + row in masked:
                lost.append(masked[unit.start + row])
            elif count == 0:
                lost.append(Quarantined(unit.start + row, EMPTY))
            elif reason := self._unfinite(block[row * per_prompt : row * per_prompt + min(count, per_prompt)]):
                lost.append(Quarantined(unit.start + row, reason))
        return tuple(lost)

    def _unfinite(self, samples: Block) -> str | None:
        finite = np.isfinite(samples).all(axis=0)
        if finite.all():
            return None
        column = int(np.argmin(finite))
        site = next(name for name, part in self._plan.columns.items() if part.start <= column < part.stop)
        return f"non-finite activation at {site}"


def lighter(treatment: Treatment, unit: Unit, failure: BatchMemoryError) -> Treatment:
    """Returns a treatment that needs less memory: the micro-batch in twice as many pieces, or its one prompt masked."""
    if len(failure.rows) == 1:
        lost = Quarantined(unit.start + failure.rows[0], TOO_LARGE)
        return dataclasses.replace(treatment, masked=(*treatment.masked, lost))
    parts = {split.batch: split.parts for split in treatment.splits}
    parts[failure.batch] = 2 * max(treatment.parts, parts.get(failure.batch, 1))
    splits = tuple(Split(batch, count) for batch, count in sorted(parts.items()))
    return dataclasses.replace(treatment, splits=splits)


def _counted(unit: Unit, ran: Ran) -> NDArray[np.int64]:
    """Returns how many tokens of each prompt count, `[prompts]`."""
    num_tokens = np.array(ran.packed.num_tokens, np.int64)
    num_tokens[[one.row - unit.start for one in ran.lost]] = 0
    return num_tokens


def _splits(ran: Ran) -> tuple[Split, ...]:
    """Returns the micro-batches that ran in pieces."""
    parts = {split.batch: split.parts for split in ran.treatment.splits}
    counts = (max(ran.treatment.parts, parts.get(batch, 1)) for batch in range(len(ran.packed.batches)))
    return tuple(Split(batch, count) for batch, count in enumerate(counts) if count > 1)
