"""The case of one unit: which attempts it had, what it needs next, and which of its prompts are to blame."""

from collections.abc import Callable, Sequence
from typing import Literal, final

from pipeline.errors import WorkerLostError
from pipeline.scheduling import crew
from pipeline.scheduling.bisection import Rows, Search, culprits
from pipeline.scheduling.crew import Extract, Settle, Task
from schemas.plan import LawName, Unit
from schemas.receipt import Quarantined, Receipt
from schemas.treatment import PACKING, Crumb, Probe, Treatment

#: What ends a worker, in the eyes of who schedules: a deadline does, too.
Cause = crew.Cause | Literal["hang"]


@final
class Case:
    """One unit that is not done, or the frame of a law, which is taken from one unit.

    A first loss is answered by a plain retry, for workers die by themselves; the last of the policy's attempts leaves
    breadcrumbs; if that is lost too, the rows of the micro-batch that it was in are searched for culprits, which are
    masked from then on. Memory is halved first.

    Args:
        unit: The unit.
        law: The law whose frame is chosen; None to run the unit.
        masked: Its prompts that are known to end workers.
        attempts: How patient to be, see `Policy`.
    """

    def __init__(self, unit: Unit, law: LawName | None, masked: tuple[Quarantined, ...], attempts: int) -> None:
        self.unit, self.law, self.masked = unit, law, masked
        #: Copies that wait or run at workers: two while it is raced.
        self.copies = 0
        #: Whether it is over; what a copy gives after that is only compared.
        self.done = False
        #: What it gave; None while it is not done, and for a frame.
        self.receipt: Receipt | None = None
        #: Where it was lost last.
        self.lost_at: int | None = None
        self._most = attempts
        self._attempt = self._losses = self._halvings = self._hangs = self._unexplained = 0
        self._search: Search | None = None
        self._suspects: Rows = ()
        self._batch: int | None = None
        self._reason = ""

    @property
    def suspect(self) -> bool:
        """Whether it lost a worker."""
        return bool(self._losses or self._halvings)

    @property
    def alone(self) -> bool:
        """Whether nothing may wait behind it at its worker, for it is likely to end it."""
        return self._search is not None or self._careful

    @property
    def patience(self) -> float:
        """By what a guessed deadline is multiplied: for forwards in pieces, and for guesses that proved too short."""
        return 2.0**self._halvings if self._search else 2.0 ** (self._halvings + self._hangs)

    def task(self) -> Task:
        """Returns what is to be done next. Every attempt has its own number, so that a late writer is told apart."""
        if self._search is not None:
            return Probe(self.unit, self._batch, self._suspects, self.masked, self._parts)
        self._attempt += 1
        treatment = Treatment(self._attempt, careful=self._careful, masked=self.masked, parts=self._parts)
        return Extract(self.unit, treatment) if self.law is None else Settle(self.law, self.unit, treatment)

    def lose(self, task: Task, cause: Cause, reason: str, crumb: Callable[[Unit], Crumb | None]) -> None:
        """Takes the loss of a worker over a task.

        Args:
            task: The task.
            cause: What ended the worker.
            reason: The same in words, as it is said of a culprit.
            crumb: Returns the unit's last breadcrumb.

        Raises:
            WorkerLostError: Worker after worker is lost, and no prompt is to blame.
        """
        if isinstance(task, Probe):
            if cause != "unreachable":  # which says nothing about the rows: they are probed again
                self._reason = reason
                self._answer(ended=True)
            return
        if cause == "memory" and self._halvings < self._most:
            self._halvings += 1
            return
        self._hangs += cause == "hang"
        self._losses += 1
        if task.treatment.careful:
            self._reason = reason
            self._inspect(task.treatment.attempt, crumb(self.unit))

    def survive(self) -> None:
        """Takes that a worker survived the probe.

        Raises:
            WorkerLostError: Worker after worker is lost, and no prompt is to blame.
        """
        self._answer(ended=False)

    @property
    def _careful(self) -> bool:
        return self._losses >= self._most - 1 or self._halvings >= self._most

    @property
    def _parts(self) -> int:
        return 1 << self._halvings

    def _inspect(self, attempt: int, crumb: Crumb | None) -> None:
        """Begins a search among the rows that the lost attempt was at."""
        masked = {one.row - self.unit.start for one in self.masked}
        rows = tuple(row for row in crumb.rows if row not in masked) if crumb is not None else ()
        if crumb is None or crumb.attempt != attempt or not rows:
            self._explain_nothing()
            return
        self._batch, self._search = crumb.batch, culprits(rows)
        self._suspects = next(self._search)

    def _answer(self, *, ended: bool) -> None:
        assert self._search is not None, "nothing was probed"
        try:
            self._suspects = self._search.send(ended)
        except StopIteration as stop:
            self._search = None
            self._blame(stop.value)

    def _blame(self, rows: Rows) -> None:
        if not rows:
            self._explain_nothing()
            return
        places = [self.unit.start + row for row in rows]
        reason = self._reason if self._batch is not None else f"{PACKING}: {self._reason}"
        culprits = [Quarantined(place, reason + _together(place, places)) for place in places]
        self.masked = tuple(sorted([*self.masked, *culprits], key=lambda one: one.row))

    def _explain_nothing(self) -> None:
        self._unexplained += 1
        if self._unexplained >= self._most:
            what = str(self.unit) if self.law is None else f"the frame of {self.law}"
            raise WorkerLostError(what, self._losses, f"the last one {self._reason}, and no prompt is to blame")


def _together(place: int, places: Sequence[int]) -> str:
    others = [str(one) for one in places if one != place]
    return f", together with row {' and '.join(others)}" if others else ""
