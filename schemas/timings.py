"""How long the stages of a run took, over all the times that it was started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

#: The stages of a job in the order in which it does them.
STAGES = ("plan", "repair", "model", "workers", "reuse", "frames", "extract", "reduce", "fit", "save")


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

    @property
    def in_order(self) -> dict[str, float]:
        """Seconds of each stage, in the order of the stages; those of another name come last."""
        names = [*(name for name in STAGES if name in self.stages), *(n for n in self.stages if n not in STAGES)]
        return {name: self.stages[name] for name in names}
