"""The scheduler: runs units on a crew, whatever becomes of its workers, and yields a receipt for each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import final

from pipeline.errors import WorkerLostError
from pipeline.scheduling.case import Case, Cause
from pipeline.scheduling.crew import AbstractCrew, Event, Extract, Failed, Finished, Lost, Ready
from pipeline.scheduling.pace import Pace, Policy
from pipeline.scheduling.race import Race, check_same_bits
from pipeline.scheduling.records import AbstractRecords
from pipeline.scheduling.roster import Entry, Place, Roster
from pipeline.scheduling.watch import FOREVER, Watch
from schemas.plan import LawName, Unit
from schemas.receipt import Receipt
from schemas.treatment import Probe


@final
class Scheduler:
    """Runs units on a crew. It holds what is in flight and nothing else, so it does not grow with the units.

    The first task in a lost worker's queue was running and is the suspect; those behind it go back unblamed.

    Args:
        crew: Who runs them. Its workers stay ready from one call to the next.
        records: What is written down about units.
        policy: How patient to be.
    """

    def __init__(self, crew: AbstractCrew, records: AbstractRecords, policy: Policy | None = None) -> None:
        self._crew, self._records, self._policy = crew, records, policy or Policy()
        self._pace, self._roster = Pace(self._policy), Roster(crew.num_places, self._policy.window)
        self._watch = Watch(crew, self._roster, self._pace, self._policy)
        self._race = Race(self._roster, self._pace)
        self._source: Iterator[Case] = iter(())
        self._drawn = True  # all of the source
        self._suspects: deque[Case] = deque()
        self._returned: deque[Case] = deque()
        self._landed: deque[Receipt] = deque()
        self._num_open = 0
        self._fruitless = 0  # workers lost since the last progress

    def muster(self) -> None:
        """Starts the workers, and waits until the first of them is ready.

        Raises:
            WorkerLostError: None gets ready.
        """
        for place in self._roster:
            if place.state == "empty":
                self._start(place)
        while not self._roster.num_ready:
            self._turn()

    def turn(self, records: AbstractRecords) -> None:
        """Goes on with another run, with the workers that are there."""
        self._records = records
        self._pace.forget()

    def settle(self, frames: Iterable[tuple[LawName, Unit]]) -> None:
        """Chooses the frames of laws, each from one unit, as `run` runs units.

        Raises:
            WorkerLostError: Worker after worker is lost, and no prompt is to blame.
        """
        left = list(frames)
        while left:
            # One frame of a unit after the other: what ends workers is searched for once, and known to the next.
            now = {unit: (law, unit) for law, unit in reversed(left)}.values()
            left = [frame for frame in left if frame not in now]
            for receipt in self._run(self._case(unit, law) for law, unit in now):
                raise AssertionError(f"a frame has no receipt, found {receipt}")

    def run(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Yields one receipt for every unit, in the order in which they land. Units are drawn when there is room.

        Raises:
            WorkerLostError: Worker after worker is lost, and no prompt is to blame.
            DifferentBitsError: Two workers gave different bits for a unit.
        """
        return self._run(self._case(unit, None) for unit in units)

    def _case(self, unit: Unit, law: LawName | None) -> Case:
        return Case(unit, law, self._records.known(unit), self._policy.attempts)

    def _run(self, cases: Iterator[Case]) -> Iterator[Receipt]:
        self._source, self._drawn, self._fruitless = cases, False, 0
        try:
            self.muster()
            while self._fill():
                self._turn()
                while self._landed:
                    yield self._landed.popleft()
        finally:
            self._forget()

    def _forget(self) -> None:
        """Lets go of what is in flight: of copies that lost a race, or of everything if the caller had enough."""
        for place in self._roster:
            for entry in place.queue:
                entry.case.done = True
        for waiting in (self._suspects, self._returned, self._landed):
            waiting.clear()
        self._source, self._drawn, self._num_open = iter(()), True, 0
        self._race.close()

    def _turn(self) -> None:
        for event in self._watch.wait(self._race.due):
            self._take(event)
        for place in self._watch.overdue():
            self._crew.stop(place.number)
            if place.state == "starting":
                self._start(place)  # it may have found no room; the others go on, so it may try for ever
            else:
                self._lose(place, "hang")

    # What is submitted

    def _fill(self) -> bool:
        """Submits what there is room for; returns whether anything is open."""
        while (place := self._roster.room()) is not None:
            place, case = self._pick(place)
            if case is None:
                self._fill_with_copies()
                break
            self._submit(place, case)
        return self._num_open > 0 or not self._drawn

    def _pick(self, place: Place) -> tuple[Place, Case | None]:
        """Returns what to run next, and where: suspects first, but not before it is known how long a unit takes."""
        if not self._pace.known and (case := self._next()) is not None:
            return place, case
        elsewhere, case = self._next_suspect(place)
        return (place, self._next()) if case is None else (elsewhere, case)

    def _next_suspect(self, place: Place) -> tuple[Place, Case | None]:
        """Returns a suspect and where it may go: elsewhere than where it was lost, if there is elsewhere."""
        for number, case in enumerate(self._suspects):
            elsewhere = place if self._roster.num_ready == 1 else self._roster.room(case.lost_at)
            if elsewhere is not None:
                del self._suspects[number]
                return elsewhere, case
        return place, None

    def _next(self) -> Case | None:
        if self._returned:
            return self._returned.popleft()
        new = next(self._source, None)
        self._num_open += new is not None
        self._drawn = new is None
        return new

    def _fill_with_copies(self) -> None:
        """There is room and nothing new for it: races what is slow."""
        if self._suspects:
            self._race.close()
            return
        self._race.open(self._watch.time)
        for entry in self._race.slow(self._watch.time):
            idle = self._roster.room()
            assert idle is not None, "no more is raced than there are idle workers"
            self._submit(idle, entry.case)

    def _submit(self, place: Place, case: Case) -> None:
        entry = Entry(case, case.task(), self._watch.time)
        case.copies += 1
        place.queue.append(entry)
        self._crew.submit(place.number, entry.task)
        if place.queue[0] is entry:
            self._begin(place)
        else:
            self._race.began(entry)
        self._roster.file(place)

    def _begin(self, place: Place) -> None:
        """What is first in a queue runs from now on, if there is anything."""
        self._watch.began(place)
        if place.queue:
            self._race.began(place.queue[0])

    # What happens

    def _take(self, event: Event) -> None:
        place = self._roster.places[event.place]
        match event:
            case Ready():
                place.failed_starts, place.due = 0, FOREVER
                self._roster.move(place, "ready")
            case Lost() if place.state == "starting":
                self._lose_start(place)
            case Lost():
                self._lose(place, event.cause)
            case Failed():
                self._fail(event, self._leave(place, event))
            case Finished():
                entry = self._leave(place, event)
                if entry is not None:
                    self._finish(entry.case, event)

    def _leave(self, place: Place, event: Finished | Failed) -> Entry | None:
        """Takes a task out of the queue of a worker that goes on."""
        entry = next((entry for entry in place.queue if entry.task == event.task), None)
        if entry is not None:
            first = place.queue[0] is entry
            place.queue.remove(entry)
            entry.case.copies -= 1
            if first:
                self._begin(place)
            self._roster.file(place)
        return entry

    def _finish(self, case: Case, event: Finished) -> None:
        if event.receipt is not None:
            self._land(case, event.receipt)
        elif case.done:
            return
        elif isinstance(event.task, Probe):
            self._judge(case, case.survive)
        else:
            self._close(case)

    def _fail(self, event: Failed, entry: Entry | None) -> None:
        if entry is None or not (entry.case.done or isinstance(entry.task, Probe)):
            raise event.error
        if not entry.case.done:  # a copy that nobody waits for may fail; and a worker that fails at a probe lives
            self._judge(entry.case, entry.case.survive)

    def _land(self, case: Case, receipt: Receipt) -> None:
        if case.done:
            if case.receipt is not None:
                check_same_bits(case.receipt, receipt)
            return
        case.receipt = receipt
        self._landed.append(receipt)
        news = not self._pace.known
        self._pace.note(receipt)
        self._close(case)
        if news:
            self._watch.pace_is_known()
            self._race.look_again(self._watch.time)

    def _close(self, case: Case) -> None:
        case.done = True
        self._num_open -= 1
        self._fruitless = 0

    # What is lost

    def _start(self, place: Place) -> None:
        self._roster.move(place, "starting")
        self._watch.started(place)
        self._crew.start(place.number)

    def _lose_start(self, place: Place) -> None:
        place.failed_starts += 1
        if place.failed_starts < self._policy.start_attempts:
            self._start(place)
            return
        place.due = FOREVER
        self._roster.move(place, "closed")
        if all(place.state == "closed" for place in self._roster):
            raise WorkerLostError("the run", place.failed_starts, "every worker died while it loaded the model")

    def _lose(self, place: Place, cause: Cause) -> None:
        allowed = place.allowed
        queue, place.queue = place.queue, deque()
        self._start(place)
        suspect = self._suspect(queue)
        for entry in reversed(queue):
            self._return(entry.case)
        if suspect is not None:
            suspect.case.lost_at = place.number
            self._blame(suspect, cause, _reason(cause, allowed))

    def _suspect(self, queue: deque[Entry]) -> Entry | None:
        """Takes what was running out of a lost worker's queue: what is first, and is not written down as done."""
        first = queue[0] if queue else None
        while queue:
            entry = queue[0]
            receipt = self._records.find(entry.case.unit) if isinstance(entry.task, Extract) else None
            if receipt is None and entry is not first and entry.case.alone:
                return None  # it may not have begun, and its loss would be taken for more than a mere loss
            queue.popleft().case.copies -= 1
            if entry.case.done:
                return None
            if receipt is None:
                return entry
            self._land(entry.case, receipt)
        return None

    def _return(self, case: Case) -> None:
        case.copies -= 1
        if not case.done and not case.copies:
            (self._suspects if case.suspect else self._returned).appendleft(case)

    def _blame(self, entry: Entry, cause: Cause, reason: str) -> None:
        case = entry.case
        if case.copies:  # another worker has it, too
            return
        if cause == "unreachable" or not isinstance(entry.task, Probe):
            self._fruitless += 1
            if self._fruitless > 2 * self._policy.attempts * (len(self._roster.places) + 1):
                raise WorkerLostError(str(case.unit), self._fruitless, "one worker after the other, whatever it did")
        self._judge(case, lambda: case.lose(entry.task, cause, reason, self._records.crumb))

    def _judge(self, case: Case, take: Callable[[], None]) -> None:
        """Lets a case take what became of it, writes down the culprits that are found, and goes on with it."""
        before = case.masked
        take()
        if case.masked != before:
            self._records.remember(case.unit, case.masked)
            self._fruitless = 0
        self._suspects.append(case)


def _reason(cause: Cause, allowed: float) -> str:
    match cause:
        case "memory":
            return "out of memory alone"
        case "hang":
            return f"hung its worker (deadline of {allowed:g} s)"
        case "died" | "unreachable":
            return f"killed its worker ({cause})"
