"""What verification finds, and what it counts."""

from dataclasses import dataclass
from typing import Literal, final

from schemas.plan import Unit
from schemas.receipt import Receipt

#: What a file is, for whoever mends it. A run can do without a ``note``; what is ``unknown`` is no part of it.
Kind = Literal[
    "plan",
    "spec",
    "report",
    "layout",
    "prompts",
    "frame",
    "receipt",
    "output",
    "fold",
    "note",
    "former",
    "steer",
    "unknown",
]


@final
@dataclass(frozen=True)
class Damage:
    """A file that is not as it should be.

    Args:
        key: The file.
        problem: What is wrong with it.
        unit: The unit that it belongs to, if it belongs to one.
        kind: What it is.
    """

    key: str
    problem: str
    unit: Unit | None
    kind: Kind


@final
@dataclass
class Seen:
    """What was looked at, and what became of the prompts. It grows as files are checked.

    Args:
        files: Files that were checked.
        num_bytes: Bytes of these.
        units: Units with a good receipt.
        counted: Prompts of these that count.
        quarantined: Prompts of these that gave no activation.
        removed: Places of these whose prompt was removed since an earlier run.
        temporaries: What writers that died left behind, or others write now. It does no harm.
        leftovers: Whole files that no record speaks of, yet or any more. They do no harm.
    """

    files: int = 0
    num_bytes: int = 0
    units: int = 0
    counted: int = 0
    quarantined: int = 0
    removed: int = 0
    temporaries: int = 0
    leftovers: int = 0

    def add(self, receipt: Receipt) -> None:
        """Counts the prompts of a unit whose receipt was audited."""
        counted, quarantined = int(receipt.rows.sum()), len(receipt.quarantined)
        self.units += 1
        self.counted += counted
        self.quarantined += quarantined
        self.removed += receipt.num_prompts - counted - quarantined
