"""How patient to be: attempts, windows, and deadlines from what units took so far."""

import statistics
from collections import deque
from dataclasses import dataclass
from typing import final

from schemas.plan import Unit
from schemas.receipt import Receipt

#: Units whose pace is remembered.
REMEMBERED = 128

#: A unit may take so many times the slowest pace.
SLACK = 10.0

#: Seconds that every unit may take, however fast others were.
LEAST_DEADLINE = 60.0


@final
@dataclass(frozen=True)
class Policy:
    """How patient a scheduler is.

    Args:
        window: Units that wait or run at each worker, so that none waits for the driver.
        attempts: Workers that a unit may lose before its prompts are suspected, the last of them to a careful attempt;
            also, how often its micro-batches may be halved for want of memory, and how many careful attempts may be
            lost that no prompt is to blame for.
        deadline: Seconds that a unit may take; None tells it from what units took.
        first_deadline: Seconds that a unit may take as long as none is done.
        start_deadline: Seconds that a worker may take to load its model.
        start_attempts: Workers that may die in a row, at one place, while they load it.
        race_after: A unit that runs so many times longer than the median is given to a second, idle worker.
    """

    window: int = 2
    attempts: int = 3
    deadline: float | None = None
    first_deadline: float = 3600.0
    start_deadline: float = 900.0
    start_attempts: int = 3
    race_after: float = 2.0


@final
class Pace:
    """What the last units took, and so how long another may take.

    Args:
        policy: How patient to be.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def known(self) -> bool:
        """Whether a unit is done."""
        return bool(self._seconds)

    def forget(self) -> None:
        """Forgets what units took: those of another run may take longer."""
        self._seconds.clear()

    def note(self, receipt: Receipt) -> None:
        """Takes note of a finished unit."""
        self._seconds.append(receipt.seconds / max(1, receipt.num_prompts))

    def deadline(self, unit: Unit, factor: float) -> float:
        """Returns how many seconds a unit may take; a guess is multiplied by a factor, what the policy says is not."""
        if self._policy.deadline is not None:
            return self._policy.deadline
        if not self.known:
            return self._policy.first_deadline * factor
        return max(LEAST_DEADLINE, SLACK * max(self._seconds) * unit.num_prompts) * factor

    def race_after(self, unit: Unit) -> float | None:
        """Returns after how many seconds a unit is given to a second worker; None as long as no unit is done."""
        if not self.known:
            return None
        return self._policy.race_after * statistics.median(self._seconds) * unit.num_prompts
