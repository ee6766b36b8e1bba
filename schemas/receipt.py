"""The receipt of a unit: written last, it says that the unit is done and what became of each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from schemas.plan import SideName, Unit

#: Pooled activations, or the unit's sketch for a law.
OutputKind = Literal["activations", "source", "target", "tokens"]


@final
@dataclass(frozen=True)
class Quarantined:
    """A prompt that gave no activation.

    Args:
        row: Its place in the side's canonical order, from 0.
        reason: Why, in a few words.
    """

    row: int
    reason: str


@final
@dataclass(frozen=True)
class Output:
    """One file that a unit wrote.

    Args:
        kind: ``activations``, or the law whose samples of this unit it sketches.
        path: Its key in the run's storage.
        size: Bytes of the file.
        crc32c: Checksum of the file.
        sha256: Its SHA-256. The other checksum is the same for all files of one layout that are made of chunks which
            end in their own crc32c, whatever is in these.
    """

    kind: OutputKind
    path: str
    size: int
    crc32c: int
    sha256: str


@final
@dataclass(frozen=True)
class Split:
    """A micro-batch that ran in pieces, for want of memory. It may change bits, so that a replay needs it.

    Args:
        batch: Number of the micro-batch in its unit.
        parts: Pieces of consecutive rows that it ran as.
    """

    batch: int
    parts: int


@final
@dataclass(frozen=True)
class Receipt:
    """One finished unit.

    Args:
        plan: Fingerprint of the plan.
        model: Fingerprint of the weights in the worker's memory, see `act.fingerprint`.
        side: ``source`` or ``target``.
        unit: Number of the unit within its side.
        attempt: Which attempt at the unit this is, from 1.
        origin: Fingerprint of the plan of the run that the unit was taken from; empty for a unit that ran here.
        num_prompts: Prompts of the unit, quarantined and removed ones included.
        tokens: Real tokens of each prompt that the model saw, after truncation, ``[prompts]`` little-endian uint32;
            0 for a prompt that does not count.
        num_truncated: Prompts cut to `max_tokens`.
        quarantined: Prompts that gave no activation.
        splits: Micro-batches that ran in pieces.
        outputs: The files that the unit wrote.
        seconds: Wall time of the unit on its worker.
        compute_seconds: The part of it that the model's forwards took, pooling included.
        worker: Process id of the worker.
        peak_memory: Highest resident memory of the worker so far, in bytes.
    """

    plan: str
    model: str
    side: SideName
    unit: int
    attempt: int
    origin: str
    num_prompts: int
    tokens: bytes
    num_truncated: int
    quarantined: tuple[Quarantined, ...]
    splits: tuple[Split, ...]
    outputs: tuple[Output, ...]
    seconds: float
    compute_seconds: float
    worker: int
    peak_memory: int

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Real tokens of each prompt, ``[prompts]``."""
        return np.frombuffer(self.tokens, "<u4").astype(np.int64)

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Which prompts count, ``[prompts]``."""
        return self.num_tokens > 0

    def num_samples(self, rows_per_prompt: int) -> int:
        """Returns how many samples the unit's prompts gave, given the rows of a prompt."""
        return int(np.minimum(self.num_tokens, rows_per_prompt).sum())

    def output(self, kind: OutputKind) -> Output | None:
        """Returns the unit's file of a kind, if it wrote one."""
        return next((output for output in self.outputs if output.kind == kind), None)

    def of(self, unit_size: int) -> Unit:
        """Returns the unit that it is the receipt of, given the prompts of a full unit."""
        start = self.unit * unit_size
        return Unit(self.side, self.unit, start, start + self.num_prompts)


def packed_tokens(num_tokens: Sequence[int] | NDArray[np.int64]) -> bytes:
    """Returns real tokens of prompts as a receipt keeps them."""
    return np.asarray(num_tokens, "<u4").tobytes()
