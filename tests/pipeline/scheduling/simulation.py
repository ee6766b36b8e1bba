"""A crew in simulated time: workers that die, hang, dawdle and vanish as a seed says, and prompts that end them."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.scheduling import AbstractCrew, AbstractRecords, Event, Extract, Failed, Finished, Lost, Ready, Task
from schemas.plan import Unit
from schemas.receipt import Output, Quarantined, Receipt
from schemas.treatment import Crumb, Probe

#: Rows of a micro-batch.
BATCH = 8


def units(number: int, size: int = 16) -> list[Unit]:
    return [Unit("source", index, index * size, (index + 1) * size) for index in range(number)]


def receipt_of(unit: Unit, attempt: int, masked: tuple[Quarantined, ...] = (), seconds: float = 1.0) -> Receipt:
    return Receipt(
        plan="",
        model="",
        side=unit.side,
        unit=unit.index,
        attempt=attempt,
        origin="",
        num_prompts=unit.num_prompts,
        tokens=b"",
        num_truncated=0,
        quarantined=masked,
        splits=(),
        outputs=(Output("activations", f"{unit.index}.{attempt}", 1, 7, f"{unit.index:064x}"),),
        seconds=seconds,
        compute_seconds=0.0,
        worker=0,
        peak_memory=0,
    )


@dataclass
class Fates:
    """What may happen; chances are per second of work."""

    #: What a prompt does to its worker, by its row in the side; several rows do it only together.
    poison: dict[tuple[int, ...], str] = field(default_factory=dict)
    death: float = 0.0
    hang: float = 0.0
    vanishing: float = 0.0
    node_loss: float = 0.0
    #: Chance that a unit takes 30 times as long.
    dawdling: float = 0.0
    #: Chance that a worker dies after its receipt and before its reply.
    lost_reply: float = 0.0
    #: Chance that a worker dies while it starts, and that it finds no room and is never heard of.
    bad_start: float = 0.0
    no_room: float = 0.0


class Records(AbstractRecords):
    def __init__(self) -> None:
        self.receipts: dict[Unit, Receipt] = {}
        self.crumbs: dict[Unit, Crumb] = {}
        self.remembered: dict[Unit, tuple[Quarantined, ...]] = {}

    def find(self, unit: Unit) -> Receipt | None:
        return self.receipts.get(unit)

    def crumb(self, unit: Unit) -> Crumb | None:
        return self.crumbs.get(unit)

    def known(self, unit: Unit) -> tuple[Quarantined, ...]:
        return self.remembered.get(unit, ())

    def remember(self, unit: Unit, culprits: tuple[Quarantined, ...]) -> None:
        self.remembered[unit] = culprits

    def commit(self, unit: Unit, receipt: Receipt) -> Receipt:
        return self.receipts.setdefault(unit, receipt)


class Worker:
    """One life of a worker."""

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        self.gone = False


class SimulatedCrew(AbstractCrew):
    """Places without workers of their own: all that happens is a heap of moments."""

    def __init__(self, num_places: int, records: Records, fates: Fates | None = None, seed: int = 0) -> None:
        self._num_places, self.records, self.fates = num_places, records, fates or Fates()
        self._random, self._time, self._order = random.Random(seed), 0.0, itertools.count()
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._workers: dict[int, Worker] = {}
        self._events: list[Event] = []
        #: What was submitted and stopped, in order, for tests to look at.
        self.submitted: list[tuple[int, Task]] = []
        self.stopped: list[int] = []
        self.starts: list[int] = []
        self.longest = 0
        #: Overrides what happens: called with place and task, returns seconds and an outcome, or None.
        self.script: Callable[[int, Task], tuple[float, str] | BaseException | None] = lambda place, task: None

    @property
    def num_places(self) -> int:
        return self._num_places

    def now(self) -> float:
        return self._time

    def start(self, place: int) -> None:
        assert place not in self._workers, "there is a worker already"
        self.starts.append(place)
        worker = self._workers[place] = Worker()
        draw = self._random.random()
        if draw < self.fates.no_room:
            return
        ready = draw >= self.fates.no_room + self.fates.bad_start
        self._later(
            self._random.uniform(1, 5), worker, lambda: self._say(Ready(place)) if ready else self.lose(place, "died")
        )

    def submit(self, place: int, task: Task) -> None:
        worker = self._workers[place]
        self.submitted.append((place, task))
        worker.queue.append(task)
        self.longest = max(self.longest, len(worker.queue))
        if len(worker.queue) == 1:
            self._begin(place, worker)

    def stop(self, place: int) -> None:
        self.stopped.append(place)
        self._workers.pop(place).gone = True
        assert not any(event.place == place for event in self._events), "stopped although it had something to say"

    def wait(self, timeout: float) -> list[Event]:
        until = self._time + timeout
        while not self._events and self._moments and self._moments[0][0] <= until:
            self._time, _, happen = heapq.heappop(self._moments)
            happen()
        if not self._events:
            assert timeout < float("inf"), "nothing would ever happen"
            self._time = until
        events, self._events = self._events, []
        return events

    def lose(self, place: int, cause: str) -> None:
        worker = self._workers.pop(place, None)
        if worker is not None:
            worker.gone = True
            self._events = [event for event in self._events if event.place != place]
            self._say(Lost(place, cause))  # type: ignore[arg-type]

    def _say(self, event: Event) -> None:
        self._events.append(event)

    def _later(self, seconds: float, worker: Worker, happen: Callable[[], None]) -> None:
        heapq.heappush(
            self._moments, (self._time + seconds, next(self._order), lambda: None if worker.gone else happen())
        )

    def _begin(self, place: int, worker: Worker) -> None:
        task = worker.queue[0]
        told = self.script(place, task)
        if isinstance(told, BaseException):
            self._later(1.0, worker, lambda: self._fail(place, worker, told))
            return
        poison = self._poison(task)
        sane = poison is None
        seconds, outcome = told or self._fate(task, poison)
        if outcome == "done":
            self._later(seconds, worker, lambda: self._finish(place, worker, task, seconds))
        elif outcome == "vanishing":
            self._later(seconds, worker, lambda: self._vanish(place, task if sane else None))
        elif outcome == "node":
            self._later(seconds, worker, lambda: self._lose_node(place))
        elif outcome == "lost reply":
            self._later(seconds, worker, lambda: self._lose_reply(place, task, seconds))
        elif outcome != "hang":
            self._later(seconds, worker, lambda: self.lose(place, outcome))

    def _fate(self, task: Task, poison: str | None) -> tuple[float, str]:
        """Returns after how many seconds what happens."""
        seconds = task.unit.num_prompts * 0.1 * self._random.uniform(0.8, 1.2)
        if self._random.random() < self.fates.dawdling:
            seconds *= 30
        chances = {
            "died": self.fates.death,
            "hang": self.fates.hang,
            "vanishing": self.fates.vanishing,
            "node": self.fates.node_loss,
        }
        for outcome, chance in chances.items():
            if self._random.random() < 1 - (1 - chance) ** seconds:
                return seconds * self._random.random(), outcome
        if poison is not None:
            return seconds, poison
        if isinstance(task, Extract) and self._random.random() < self.fates.lost_reply:
            return seconds, "lost reply"
        return seconds, "done"

    def _poison(self, task: Task) -> str | None:
        """What the prompts of a task do to its worker; leaves the breadcrumbs on the way."""
        unit = task.unit
        masked = {one.row - unit.start for one in (task if isinstance(task, Probe) else task.treatment).masked}
        for batch, start in enumerate(range(0, unit.num_prompts, BATCH)):
            rows = tuple(range(start, min(start + BATCH, unit.num_prompts)))
            if isinstance(task, Probe):
                if task.batch != batch:
                    continue
                rows = tuple(row for row in rows if row in task.rows)
            elif task.treatment.careful:
                self.records.crumbs[unit] = Crumb(unit.side, unit.index, task.treatment.attempt, batch, rows, 0)
            real = {unit.start + row for row in rows if row not in masked}
            for culprits, what in self.fates.poison.items():
                if real.issuperset(culprits):
                    return what
        return None

    def _commit(self, task: Task, seconds: float) -> Receipt | None:
        if not isinstance(task, Extract):
            return None
        receipt = receipt_of(task.unit, task.treatment.attempt, task.treatment.masked, seconds)
        return self.records.commit(task.unit, receipt)

    def _finish(self, place: int, worker: Worker, task: Task, seconds: float) -> None:
        worker.queue.popleft()
        self._say(Finished(place, task, self._commit(task, seconds)))
        if worker.queue:
            self._begin(place, worker)

    def _fail(self, place: int, worker: Worker, error: BaseException) -> None:
        self._say(Failed(place, worker.queue.popleft(), error))
        if worker.queue:
            self._begin(place, worker)

    def _vanish(self, place: int, task: Task | None) -> None:
        """The worker is out of reach and at work all the same: what it commits is found, or loses."""
        if task is not None:
            self._later(self._random.uniform(0, 20), Worker(), lambda: self._commit_late(task))
        self.lose(place, "unreachable")

    def _commit_late(self, task: Task) -> None:
        self._commit(task, 1.0)

    def _lose_node(self, place: int) -> None:
        for one in range(place // 2 * 2, place // 2 * 2 + 2):
            self.lose(one, "died")

    def _lose_reply(self, place: int, task: Task, seconds: float) -> None:
        self._commit(task, seconds)
        self.lose(place, "died")
