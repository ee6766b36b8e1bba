"""The receipt of a unit: written last, it says that the unit is done and what became of each prompt."""

from dataclasses import dataclass
from typing import Literal, final

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
        path: Relative to the run folder.
        size: Bytes of the file.
        crc32c: Checksum of the file.
    """

    kind: OutputKind
    path: str
    size: int
    crc32c: int


@final
@dataclass(frozen=True)
class Receipt:
    """One finished unit.

    Args:
        plan: Fingerprint of the plan.
        model: Fingerprint of the weights in the worker's memory, see `act.fingerprint`.
        side: ``source`` or ``target``.
        unit: Number of the unit within its side.
        num_prompts: Prompts seen, quarantined ones included.
        num_tokens: Real tokens of each prompt that the model saw, after truncation; 0 for a quarantined prompt.
        num_truncated: Prompts cut to `max_tokens`.
        quarantined: Prompts that gave no activation.
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
    num_prompts: int
    num_tokens: tuple[int, ...]
    num_truncated: int
    quarantined: tuple[Quarantined, ...]
    outputs: tuple[Output, ...]
    seconds: float
    compute_seconds: float
    worker: int
    peak_memory: int

    def num_samples(self, rows_per_prompt: int) -> int:
        """Returns how many samples the unit's prompts gave, given the rows of a prompt."""
        return sum(min(tokens, rows_per_prompt) for tokens in self.num_tokens)

    def output(self, kind: OutputKind) -> Output | None:
        """Returns the unit's file of a kind, if it wrote one."""
        return next((output for output in self.outputs if output.kind == kind), None)

    def of(self, unit_size: int) -> Unit:
        """Returns the unit that it is the receipt of, given the prompts of a full unit."""
        start = self.unit * unit_size
        return Unit(self.side, self.unit, start, start + self.num_prompts)
