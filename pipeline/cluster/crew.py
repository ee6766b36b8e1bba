"""A crew of Ray actors."""

import queue
import time
from dataclasses import dataclass
from typing import Any, final

from pipeline.cluster.post import Call, Ending, Post
from pipeline.errors import ClusterError
from pipeline.scheduling import AbstractCrew, Event, Failed, Finished, Lost, Ready, Task

#: Seconds in which an actor that could not be reached has to answer.
REACHABLE_WITHIN = 60.0

#: Seconds between asking such an actor again.
ASK_EVERY = 1.0

#: Seconds of one wait, at most: more than that some clocks refuse.
LONGEST = 3600.0

#: Seconds without a word and without a worker, after which a crew asks whether the cluster still is.
LOOK_EVERY = 5.0


@final
@dataclass(frozen=True)
class Berths:
    """What workers get of a cluster.

    Args:
        address: ``local``, or the address of a running cluster.
        num_workers: How many there are.
        threads: Cores of each.
        gpus: GPUs of each.
    """

    address: str
    num_workers: int
    threads: int
    gpus: int

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of an actor; it restarts and repeats nothing by itself."""
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(self.threads)}
        return {
            "num_cpus": self.threads,
            "num_gpus": self.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": environment},
        }


@final
class RayCrew(AbstractCrew):
    """Actors of a class of workers, a place each. An actor that is gone stays gone until its place is started again.

    Ray itself restarts nothing: it would restart a process that dies while it starts without pause or end (37 times in
    12 seconds were seen), and what died for want of memory could not be told from what crashed. Who schedules counts
    the starts, and the constructor of a worker is trivial: it loads its model in `ready`.

    No result is polled for: each call puts its end into a queue.

    Args:
        ray: Ray.
        berths: What the workers get.
        worker: Their class.
        arguments: What each is made with: the plan, and where the run lies.
        reachable_within: Seconds in which an actor that could not be reached has to answer.
    """

    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        berths: Berths,
        worker: type,
        arguments: tuple[Any, ...],
        reachable_within: float = REACHABLE_WITHIN,
    ) -> None:
        self._ray, self._berths, self._arguments = ray, berths, arguments
        self._reachable_within = reachable_within
        self._actor = ray.remote(worker).options(**berths.options)
        self._posts: list[Post | None] = [None] * berths.num_workers
        self._places: dict[Post, int] = {}
        self._told: queue.SimpleQueue[Post] = queue.SimpleQueue()

    @property
    def num_places(self) -> int:
        """Number of workers."""
        return self._berths.num_workers

    def now(self) -> float:
        """Returns seconds of the monotonic clock."""
        return time.monotonic()

    def start(self, place: int) -> None:
        """Starts an actor. It waits for room for as long as Ray has none."""
        assert self._posts[place] is None, "there is a worker already"
        post = Post(self._ray, self._actor.remote(*self._arguments), self._told.put)
        self._posts[place], self._places[post] = post, place

    def submit(self, place: int, task: Task) -> None:
        """Calls the actor of a place."""
        self._post(place).call(task)

    def turn(self, *arguments: Any) -> None:  # noqa: ANN401
        """Tells all workers, those that start later too, to go on with something else, after what they do now."""
        self._arguments = arguments
        for post in self._places:
            post.call("turn", *arguments)

    def stop(self, place: int) -> None:
        """Kills the actor of a place."""
        post = self._post(place)
        self._posts[place] = None
        del self._places[post]
        post.kill(here=self._berths.address == "local")

    def dismiss(self) -> None:
        """Ends all actors, which have nothing to do; Ray reports no death then."""
        for post in list(self._places):
            self._ray.kill(post.actor)
        self._places, self._posts = {}, [None] * len(self._posts)

    def close(self) -> None:
        """Kills all actors."""
        for place, post in enumerate(self._posts):
            if post is not None:
                self.stop(place)

    def wait(self, timeout: float) -> list[Event]:
        """Waits for the first call to end, and returns what all calls that have ended say.

        Raises:
            ClusterError: There is no worker, and no node of the cluster is alive.
        """
        until, events = time.monotonic() + timeout, list[Event]()
        while not events:
            left = until - time.monotonic()
            events = self._hear(max(0.0, min(left, self._patience)))
            for post in [post for post in self._places if post.answer_by is not None]:
                events += self._doubt(post)
            if left <= 0:
                break
            if not events and not self._working:
                self._look()
        return events

    @property
    def _working(self) -> bool:
        return any(post.pid is not None for post in self._places)

    @property
    def _patience(self) -> float:
        """Seconds after which something is to be done although nobody has spoken."""
        if any(post.answer_by is not None for post in self._places):
            return ASK_EVERY
        return LONGEST if self._working else LOOK_EVERY

    def _hear(self, timeout: float) -> list[Event]:
        try:
            told = [self._told.get(timeout=timeout)]
        except queue.Empty:
            return []
        while not self._told.empty():
            told.append(self._told.get())
        return [event for post in dict.fromkeys(told) for event in self._ended(post)]

    def _ended(self, post: Post) -> list[Event]:
        """Returns what the calls of an actor say that have ended, in order; nothing of one that is gone."""
        events: list[Event] = []
        while post in self._places and post.answer_by is None and (ended := post.ended()) is not None:
            events += self._event(post, *ended)
        return events

    def _event(self, post: Post, call: Call, ending: Ending, result: Any) -> list[Event]:  # noqa: ANN401
        place, task = self._places[post], None if isinstance(call.what, str) else call.what
        if ending == "unreachable":
            post.answer_by = time.monotonic() + self._reachable_within
            post.ping()
            return []
        if ending == "raised":
            return [Failed(place, task, own(result))]
        if ending != "done":
            self.stop(place)
            return [Lost(place, ending)]
        if call.what == "ready":
            post.pid = result
            return [Ready(place)]
        return [Finished(place, task, result)] if task is not None else []

    def _doubt(self, post: Post) -> list[Event]:
        """Finds out what became of an actor that could not be reached."""
        answer = post.answered()
        if answer in {"done", "raised"}:
            post.repeat()
            return []
        place, late = self._places[post], time.monotonic() >= (post.answer_by or 0.0)
        if answer in {None, "unreachable"} and not late:
            if answer is not None and time.monotonic() >= post.asked + ASK_EVERY:
                post.ping()
            return []
        self.stop(place)
        return [Lost(place, "died" if answer == "died" else "memory" if answer == "memory" else "unreachable")]

    def _look(self) -> None:
        """Asks whether there still is a cluster to find room on."""
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise ClusterError(self._berths.address, "none of its nodes is alive; start it again")

    def _post(self, place: int) -> Post:
        post = self._posts[place]
        assert post is not None, "there is no worker"
        return post


def own(error: Any) -> BaseException:  # noqa: ANN401
    """Returns our own error that an actor raised, or the foreign one as it came."""
    cause = getattr(error, "cause", None) or getattr(error, "__cause__", None)
    if isinstance(cause, BaseException):
        return cause
    return error if isinstance(error, BaseException) else RuntimeError(str(error))
