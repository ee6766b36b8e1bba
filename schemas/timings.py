"""How long the stages of a run took, over all the times that it was started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Timings:
    """Wall time of a run.

    Args:
        stages: Seconds of each stage, summed over resumes.
        workers: Workers of the last start; 0 for the process itself.
        prompts: Prompts that went through the model.
    """

    stages: Mapping[str, float] = field(default_factory=dict)
    workers: int = 0
    prompts: int = 0
