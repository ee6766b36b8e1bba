"""A crew: places at which workers run tasks, and what happens to them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from schemas.plan import LawName, Unit
from schemas.receipt import Receipt
from schemas.treatment import Probe, Treatment

#: What ends a worker: its process died, nobody can reach it, or it was killed for want of memory.
Cause = Literal["died", "unreachable", "memory"]


@final
@dataclass(frozen=True)
class Extract:
    """An attempt at a unit; its result is a receipt."""

    unit: Unit
    treatment: Treatment


@final
@dataclass(frozen=True)
class Settle:
    """An attempt at choosing the frame of a law, which is taken from one unit."""

    law: LawName
    unit: Unit
    treatment: Treatment


#: What a worker can be told to do.
Task = Extract | Settle | Probe


@final
@dataclass(frozen=True)
class Ready:
    """The worker that was started at a place has loaded its model."""

    place: int


@final
@dataclass(frozen=True)
class Finished:
    """A worker did a task.

    Args:
        place: Where.
        task: The task.
        receipt: What an attempt at a unit gave; None for other tasks.
    """

    place: int
    task: Task
    receipt: Receipt | None


@final
@dataclass(frozen=True)
class Failed:
    """A worker raised an error, and lives.

    Args:
        place: Where.
        task: The task; None while the worker started.
        error: The error.
    """

    place: int
    task: Task | None
    error: BaseException


@final
@dataclass(frozen=True)
class Lost:
    """The worker of a place is gone, with all its tasks; nothing will be heard of them.

    Args:
        place: Where.
        cause: Why.
    """

    place: int
    cause: Cause


Event = Ready | Finished | Failed | Lost


class AbstractCrew(ABC):
    """Places, each with one worker at a time, which does its tasks in the order in which they were submitted."""

    @property
    @abstractmethod
    def num_places(self) -> int:
        """Number of places."""

    @abstractmethod
    def start(self, place: int) -> None:
        """Starts a worker at a place that has none. It tells when it is ready; a place without room never does."""

    @abstractmethod
    def submit(self, place: int, task: Task) -> None:
        """Puts a task at the end of the queue of a place whose worker is ready."""

    @abstractmethod
    def stop(self, place: int) -> None:
        """Ends the worker of a place at once, whatever it does; nothing more will be heard of its tasks."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Event]:
        """Waits until something happens, but at most so many seconds, and returns all that has happened by then."""

    @abstractmethod
    def now(self) -> float:
        """Returns seconds on a clock that never goes back."""
