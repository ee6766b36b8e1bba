"""The forward: prompts through the model, their activations pooled into one block while it runs."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from act.capture import Capture
from act.fingerprint import fingerprint
from pipeline import machine
from pipeline.errors import BatchMemoryError, OtherNumericsError
from pipeline.models import AbstractModel, MicroBatch, Packed, open_located
from pipeline.plan import packing_rule
from pipeline.store.activations import Block
from schemas.job import Job
from schemas.plan import Plan
from schemas.receipt import Quarantined
from schemas.treatment import PACKING, Probe, Treatment

#: Takes the number of a site and the activations of its real tokens, `[tokens, neurons]`, on the model's device.
TokenSink = Callable[[int, torch.Tensor], None]

#: Takes what is about to happen: the number of a micro-batch, None for packing, and the rows of the unit in it.
BatchSink = Callable[[int | None, tuple[int, ...]], None]

#: What torch says when its CPU allocator fails, wherever in the sentence.
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"

_PLAIN = Treatment()


@final
class Forward:
    """Runs prompts through the model of a plan, which the first call loads.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._block: Block = np.empty((0, plan.width), np.float32)

    @cached_property
    def model(self) -> AbstractModel:
        """The model.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        job, wanted = Job.model_validate(self._plan.spec), self._plan.numerics
        device = machine.pick_device(job.compute.device)
        found = machine.numerics(device, wanted.dtype, wanted.threads, wanted.attention)
        if found != wanted:
            raise OtherNumericsError(str(wanted), str(found))
        with machine.threads(wanted.threads):
            return open_located(job.model, Path(self._plan.location)).load(device)

    def turned(self, plan: Plan) -> "Forward":
        """Returns the forward of another plan with the model as it is loaded; it and the numerics are the same."""
        forward = Forward(plan)
        forward.model, forward.fingerprint = self.model, self.fingerprint
        return forward

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights in memory."""
        return fingerprint(self.model.root)

    @property
    def device(self) -> torch.device:
        """Where the activations are."""
        return torch.device(machine.pick_device(self._plan.spec["compute"]["device"]))

    def run(
        self,
        prompts: Sequence[str | None],
        start: int,
        tokens: TokenSink | None = None,
        treatment: Treatment = _PLAIN,
        on_batch: BatchSink | None = None,
    ) -> tuple[Packed, Block]:
        """Returns how prompts were packed, and their pooled activations.

        Args:
            prompts: The prompts.
            start: Place of the first of them in its side.
            tokens: Takes the activations of their single tokens, but of masked prompts.
            treatment: Which prompts are masked, and which micro-batches run in pieces.
            on_batch: Called before packing with all rows, and before each piece of a micro-batch with the piece's.

        Returns:
            The packed prompts, with the real tokens of masked ones too, and `[prompts * rows_per_prompt, neurons of
            all sites]`, NaN where there is no sample. The block is overwritten by the next call.

        Raises:
            BatchMemoryError: A piece does not fit in memory. What the sinks took is to be dropped.
        """
        on_batch = on_batch or _ignore
        on_batch(None, tuple(range(len(prompts))))
        laid = self.lay(prompts, start, self._clear(len(prompts)), tokens, treatment)
        self._run(laid.pieces, laid.reading, on_batch)
        return laid.packed, laid.reading.finished()

    def lay(
        self,
        prompts: Sequence[str | None],
        start: int,
        block: Block,
        tokens: TokenSink | None = None,
        treatment: Treatment = _PLAIN,
    ) -> "Laid":
        """Returns prompts ready to run, see `run`.

        Args:
            prompts: The prompts.
            start: Place of the first of them in its side.
            block: Takes their samples, `[prompts * rows_per_prompt, neurons of all sites]`, filled with NaN.
            tokens: Takes the activations of their single tokens.
            treatment: Which prompts are masked, and which micro-batches run in pieces.
        """
        packed = self._pack(prompts, start, treatment.masked)
        masked = frozenset(poison.row - start for poison in treatment.masked)
        parts = {split.batch: split.parts for split in treatment.splits}
        pieces = (
            (number, piece)
            for number, batch in enumerate(packed.batches)
            for piece in self._pieces(batch, masked, max(treatment.parts, parts.get(number, 1)))
        )
        return Laid(packed, pieces, Reading(self._plan, packed, block, masked, tokens))

    def run_piece(self, number: int, piece: MicroBatch, forward: Callable[[MicroBatch], None] | None = None) -> None:
        """Runs one piece of a micro-batch.

        Args:
            number: Number of the micro-batch.
            piece: The whole of it, or a piece.
            forward: Runs it; None is the model's own forward.

        Raises:
            BatchMemoryError: It does not fit in memory.
        """
        with _within_memory(number, piece.rows):
            (forward or self.model.forward)(piece)

    def probe(self, prompts: Sequence[str | None], start: int, probe: Probe) -> None:
        """Runs one micro-batch of a unit as `run` does, with some prompts real and all others masked; or packs those.

        Args:
            prompts: The prompts of the unit.
            start: Place of the first of them in its side.
            probe: Which micro-batch, and which prompts.

        Raises:
            BatchMemoryError: A piece does not fit in memory.
        """
        real = set(probe.rows) - {poison.row - start for poison in probe.masked}
        if probe.batch is None:
            self._pack([prompt if row in real else None for row, prompt in enumerate(prompts)], start, ())
            return
        packed = self._pack(prompts, start, probe.masked)
        masked = frozenset(range(len(prompts))) - real
        # Those that hold the prompts, not the one of that number: a frame's pilot is packed differently from its unit.
        pieces = (
            (number, piece)
            for number, batch in enumerate(packed.batches)
            if not real.isdisjoint(batch.rows)
            for piece in self._pieces(batch, masked, probe.parts)
        )
        self._run(pieces, Reading(self._plan, packed, self._clear(len(prompts)), masked, None), _ignore)

    def _pack(self, prompts: Sequence[str | None], start: int, masked: Iterable[Quarantined]) -> Packed:
        lost = {poison.row - start for poison in masked if poison.reason.startswith(PACKING)}
        kept = [None if row in lost else prompt for row, prompt in enumerate(prompts)]
        return self.model.pack(kept, start, packing_rule(self._plan.spec))

    def _pieces(self, batch: MicroBatch, masked: frozenset[int], parts: int) -> tuple[MicroBatch, ...]:
        return (batch if masked.isdisjoint(batch.rows) else self.model.mask(batch, masked)).split(parts)

    def _clear(self, num_prompts: int) -> Block:
        """A block of NaN. One allocation serves all units, so a worker's memory stays flat."""
        rows = num_prompts * self._plan.rows_per_prompt
        if len(self._block) < rows:
            self._block = np.empty((rows, self._plan.width), np.float32)
        block = self._block[:rows]
        block.fill(np.nan)
        return block

    def _run(self, pieces: Iterable[tuple[int, MicroBatch]], reading: "Reading", on_batch: BatchSink) -> None:
        clock, pooling = self.model.clock(self._plan.timesteps), self._plan.spec["pooling"]
        capture = Capture(self.model.modules, self._plan.sites, pooling, reading.keep, clock, reading.count)
        with machine.threads(self._plan.numerics.threads), capture.reading():
            for number, piece in pieces:
                on_batch(number, piece.rows)
                reading.turn_to(piece)
                with capture.batch(piece.spans):
                    self.run_piece(number, piece)


@final
@dataclass(frozen=True, eq=False)
class Laid:
    """Prompts that are ready to run.

    Args:
        packed: How they were packed, with the real tokens of masked ones too.
        pieces: What is to run: the number of a micro-batch, and the whole of it or a piece.
        reading: Where what is read of them goes.
    """

    packed: Packed
    pieces: Iterable[tuple[int, MicroBatch]]
    reading: "Reading"


@final
class Reading:
    """Where hooks put what they read of a unit: samples into its block, tokens into their sink, of filler neither.

    Args:
        plan: The plan.
        packed: The unit.
        block: Takes the samples.
        masked: Rows of the unit that are filler.
        tokens: Takes the tokens.
    """

    def __init__(
        self, plan: Plan, packed: Packed, block: Block, masked: frozenset[int], tokens: TokenSink | None
    ) -> None:
        self._columns, self._per_prompt = list(plan.columns.values()), plan.rows_per_prompt
        self._num_tokens, self._block, self._masked = packed.num_tokens, block, masked
        self.count = None if tokens is None else partial(self._count, tokens)

    def finished(self) -> Block:
        """Returns the block, with no samples of what was masked."""
        rows = self._block.reshape(len(self._num_tokens), self._per_prompt, -1)
        rows[sorted(self._masked)] = np.nan
        return self._block

    def turn_to(self, piece: MicroBatch) -> None:
        """From now on this piece is read."""
        self._piece, self._rows = piece, self._places(piece.rows)

    def keep(self, site: int, samples: torch.Tensor) -> None:
        """Puts the samples of a site into the block."""
        self._block[self._rows, self._columns[site]] = samples.float().cpu().numpy()

    def _count(self, tokens: TokenSink, site: int, values: torch.Tensor) -> None:
        if not self._masked.isdisjoint(self._piece.rows):
            values = values[self._real(len(values)).to(values.device)]
        if len(values):
            tokens(site, values)

    def _real(self, num_tokens: int) -> torch.Tensor:
        """Which of the piece's tokens are of prompts that are not masked, `[tokens]`."""
        rows, spans = self._piece.rows, self._piece.spans
        counts = (num_tokens // len(rows),) * len(rows) if spans is None else spans.counts
        return torch.tensor([row not in self._masked for row in rows]).repeat_interleave(torch.tensor(counts))

    def _places(self, prompts: tuple[int, ...]) -> NDArray[np.intp]:
        """Rows of the block that the samples of some prompts go to, in the order in which pooling gives them."""
        if self._per_prompt == 1:
            return np.asarray(prompts, np.intp)
        return np.concatenate([row * self._per_prompt + np.arange(self._num_tokens[row]) for row in prompts])


@contextmanager
def _within_memory(number: int, rows: tuple[int, ...]) -> Iterator[None]:
    """A context in which want of memory is told as that of a micro-batch, once what it held is free again."""
    try:
        yield
    except (MemoryError, RuntimeError) as exc:
        if not _is_want_of_memory(exc):
            raise
        # The frames of a traceback hold the tensors of the layer that failed.
        traceback.clear_frames(exc.__traceback__)
        torch.cuda.empty_cache()
        raise BatchMemoryError(number, rows) from exc


def _is_want_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. On a CPU torch has no class for that, only a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_MEMORY in str(error)


def _ignore(batch: int | None, rows: tuple[int, ...]) -> None:
    """Takes nothing of what is about to happen."""
