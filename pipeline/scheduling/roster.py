"""The roster: what each place's worker has in its queue, and where there is room."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

from pipeline.scheduling.case import Case
from pipeline.scheduling.crew import Task


@final
@dataclass(eq=False, slots=True)
class Entry:
    """A task in the queue of a worker.

    Args:
        case: What it is for.
        task: The task.
        since: When it was submitted, or began to run.
        begun: Whether it runs.
    """

    case: Case
    task: Task
    since: float
    begun: bool = False


@final
@dataclass(eq=False, slots=True)
class Place:
    """A place, and the worker that is there.

    Args:
        number: Its number.
        state: ``empty`` before the first start, and ``closed`` when workers never got ready there.
        queue: What its worker has to do; the first entry is running.
        due: When the first entry, or the start, has taken too long.
        allowed: Seconds that it was allowed.
        failed_starts: Workers in a row that died before they were ready.
    """

    number: int
    state: Literal["empty", "starting", "ready", "closed"] = "empty"
    queue: deque[Entry] = field(default_factory=deque)
    due: float = float("inf")
    allowed: float = float("inf")
    failed_starts: int = 0


@final
class Roster:
    """All places, and those with room by how much their workers have to do.

    Args:
        num_places: Number of places.
        window: Tasks that a queue may hold.
    """

    def __init__(self, num_places: int, window: int) -> None:
        self.places = [Place(number) for number in range(num_places)]
        # A dict keeps the order and gives up a member at once. `_filed` says in which of them a place is.
        self._with_room: list[dict[int, None]] = [{} for _ in range(window)]
        self._filed: list[int | None] = [None] * num_places
        self._num_ready = 0

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    @property
    def num_ready(self) -> int:
        """Number of workers that are ready, busy or not."""
        return self._num_ready

    @property
    def num_idle(self) -> int:
        """Number of ready workers without a task."""
        return len(self._with_room[0])

    def room(self, besides: int | None = None) -> Place | None:
        """Returns the place with room whose worker has least to do, but not the one of that number."""
        return next((self.places[number] for some in self._with_room for number in some if number != besides), None)

    def move(self, place: Place, state: Literal["starting", "ready", "closed"]) -> None:
        """Notes what became of a worker."""
        self._num_ready += (state == "ready") - (place.state == "ready")
        place.state = state
        self.file(place)

    def file(self, place: Place) -> None:
        """Notes that a queue changed."""
        found = self._filed[place.number]
        if found is not None:
            del self._with_room[found][place.number]
        length = len(place.queue)
        # What may end its worker is the last in its queue.
        room = place.state == "ready" and length < len(self._with_room) and not (length and place.queue[-1].case.alone)
        self._filed[place.number] = length if room else None
        if room:
            self._with_room[length][place.number] = None
