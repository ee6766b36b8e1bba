"""The receipt of a unit: written last, it says that the unit is done and what became of each prompt."""

from dataclasses import dataclass
from typing import final

from schemas.plan import SideName


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
        shard: Path of the unit's shard file, relative to the run folder.
        size: Bytes of the shard file.
        crc32c: Checksum of the shard file.
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
    shard: str
    size: int
    crc32c: int
    seconds: float
    compute_seconds: float
    worker: int
    peak_memory: int
