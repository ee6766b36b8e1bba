"""Racing: at the end of a run, what takes long, or waits behind something, is given to a second, idle worker."""

from typing import final

from pipeline.errors import DifferentBitsError
from pipeline.scheduling.crew import Extract
from pipeline.scheduling.pace import Pace
from pipeline.scheduling.roster import Entry, Roster
from schemas.receipt import Receipt

FOREVER = float("inf")


@final
class Race:
    """Finds what to race. Only plain first attempts are: whatever lost a worker is not given to two.

    Args:
        roster: The places.
        pace: What units take.
    """

    def __init__(self, roster: Roster, pace: Pace) -> None:
        self._roster, self._pace = roster, pace
        self._open = False
        self._next = FOREVER  # nothing is to be raced before that; so that few turns look at all places

    @property
    def due(self) -> float:
        """When something may have to be raced: never, while no worker is idle."""
        return self._next if self._roster.num_idle else FOREVER

    def open(self, time: float) -> None:
        """Nothing waits for a worker."""
        if not self._open:
            self._open, self._next = True, time

    def close(self) -> None:
        """Something waits for a worker: nothing is raced."""
        self._open, self._next = False, FOREVER

    def look_again(self, time: float) -> None:
        """What was not known before is known now."""
        if self._open:
            self._next = time

    def began(self, entry: Entry) -> None:
        """Expects an entry that waits or runs since just now."""
        if self._open:
            self._next = min(self._next, self._due(entry))

    def slow(self, time: float) -> list[Entry]:
        """Returns what is to be given to idle workers, the slowest first."""
        if time < self.due:
            return []
        entries = [(self._due(entry), entry) for place in self._roster for entry in place.queue]
        slow = sorted((entry for due, entry in entries if due <= time), key=lambda entry: entry.since)
        self._next = min((due for due, _ in entries if due > time), default=FOREVER)
        if len(slow) > self._roster.num_idle:
            self._next = time
        return slow[: self._roster.num_idle]

    def _due(self, entry: Entry) -> float:
        case = entry.case
        if case.done or case.suspect or case.copies > 1 or not isinstance(entry.task, Extract):
            return FOREVER
        if not entry.begun:
            return entry.since  # it waits while others are idle; who comes second to a finished unit loses no time
        after = self._pace.race_after(case.unit)
        return FOREVER if after is None else entry.since + after


def check_same_bits(first: Receipt, second: Receipt) -> None:
    """Compares what two workers gave for a unit.

    A worker that was short of memory ran micro-batches in pieces and says so: its bits may differ.

    Raises:
        DifferentBitsError: They gave different bits.
    """
    if first.splits != second.splits:
        return
    for kind in sorted({output.kind for receipt in (first, second) for output in receipt.outputs}):
        found = [receipt.output(kind) for receipt in (first, second)]
        if len({output and (output.size, output.sha256) for output in found}) > 1:
            path = next(output.path for output in found if output is not None)
            raise DifferentBitsError(f"{first.side} unit {first.unit}", path)
