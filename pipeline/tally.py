"""The tally: what the receipts of a run say together. It takes receipts as they land, and keeps none of them."""

from dataclasses import dataclass, field
from typing import final

from pipeline.errors import LossError
from schemas.card import SplitCard
from schemas.plan import SIDES, Plan, SideName
from schemas.receipt import Quarantined, Receipt


@final
@dataclass
class SideTally:
    """What the receipts of one side say together.

    Args:
        num_units: Units that are done.
        num_prompts: Prompts of these.
        num_samples: Samples that they gave.
        num_tokens: Real tokens that the model saw.
        num_truncated: Prompts that were cut.
        lost: Prompts that were quarantined.
        splits: Micro-batches that ran in pieces.
    """

    num_units: int = 0
    num_prompts: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    num_truncated: int = 0
    lost: list[Quarantined] = field(default_factory=list)
    splits: list[SplitCard] = field(default_factory=list)

    @property
    def num_lost(self) -> int:
        """Prompts that were quarantined."""
        return len(self.lost)


@final
class Tally:
    """What receipts say together.

    Args:
        plan: Their plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._rows_per_prompt = plan.rows_per_prompt
        self._allowed = plan.most_lost
        self.sides: dict[SideName, SideTally] = {name: SideTally() for name in SIDES}
        self.models: set[str] = set()
        self.stored_bytes = 0
        self.worker_seconds = 0.0

    def add(self, receipt: Receipt) -> None:
        """Counts a receipt."""
        side = self.sides[receipt.side]
        side.num_units += 1
        side.num_prompts += receipt.num_prompts
        side.num_samples += receipt.num_samples(self._rows_per_prompt)
        side.num_tokens += int(receipt.num_tokens.sum())
        side.num_truncated += receipt.num_truncated
        side.lost += receipt.quarantined
        side.splits += [SplitCard(receipt.unit, split.batch, split.parts) for split in receipt.splits]
        self.models.add(receipt.model)
        self.stored_bytes += sum(output.size for output in receipt.outputs)
        self.worker_seconds += receipt.seconds

    def check(self) -> None:
        """Checks that no more prompts are lost than the plan allows.

        Raises:
            LossError: There are.
        """
        if self.num_lost > self._allowed:
            raise LossError(self.num_lost, self._allowed, self.losses[:3])

    @property
    def num_units(self) -> int:
        """Units that are done."""
        return sum(side.num_units for side in self.sides.values())

    @property
    def num_prompts(self) -> int:
        """Prompts of these."""
        return sum(side.num_prompts for side in self.sides.values())

    @property
    def num_tokens(self) -> int:
        """Real tokens that the model saw."""
        return sum(side.num_tokens for side in self.sides.values())

    @property
    def num_truncated(self) -> int:
        """Prompts that were cut."""
        return sum(side.num_truncated for side in self.sides.values())

    @property
    def num_lost(self) -> int:
        """Prompts that were quarantined."""
        return sum(side.num_lost for side in self.sides.values())

    @property
    def losses(self) -> list[str]:
        """The prompts that were quarantined, and why, in words."""
        return [f"{name} row {one.row} ({one.reason})" for name, side in self.sides.items() for one in side.lost]

    @property
    def model(self) -> str:
        """The fingerprint of the weights that all workers had."""
        (model,) = self.models
        return model
