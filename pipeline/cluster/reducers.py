"""The reducers of a run, as Ray actors."""

from collections import deque
from collections.abc import Sequence
from typing import Any, final

from pipeline.cluster.crew import own
from pipeline.errors import WorkerLostError
from pipeline.reduce import Reducer
from schemas.receipt import Receipt

#: Units that wait or are folded at each reducer. A slower one holds the driver up, so that neither its queue nor the
#: sketches on the disk grow without bound.
WINDOW = 64

#: Seconds that the driver is held up by one unit at most. What is not folded then is folded in the end.
HELD_UP = 60.0

#: Seconds in which a reducer has to fold what is missing in the end.
FINISHED_WITHIN = 6 * 3600.0

#: Times that reducers may be lost.
ATTEMPTS = 3


@final
class RayReducers:
    """An actor for each share of the hookpoints. They take no core of their own, and one that dies is replaced.

    Args:
        ray: Ray.
        arguments: What each is made with before its share: the plan, and where the run lies.
        shares: The hookpoints of each.
        finished_within: Seconds in which a reducer has to fold what is missing in the end.
    """

    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        arguments: tuple[Any, ...],
        shares: Sequence[range],
        finished_within: float = FINISHED_WITHIN,
    ) -> None:
        self._ray, self._arguments, self._shares = ray, arguments, shares
        self._finished_within = finished_within
        self._actors = [self._start(owned) for owned in shares]
        self._folding: list[deque[Any]] = [deque() for _ in shares]
        self._losses = 0

    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to every actor, and waits only for one that is far behind."""
        for place in range(len(self._actors)):
            folding = self._folding[place]
            if len(folding) < WINDOW or self._catches_up(place):
                folding.append(self._actors[place].fold.remote(receipt))

    def reduce(self) -> None:
        """Waits until every actor has folded all units and written its laws.

        Raises:
            WorkerLostError: Actors died, or hung, again and again.
        """
        todo = {actor.finish.remote(): place for place, actor in enumerate(self._actors)}
        while todo:
            done, late = self._ray.wait(list(todo), num_returns=1, timeout=self._finished_within)
            for ref in done or late:
                place = todo.pop(ref)
                if not done or self._is_lost(ref):
                    self._replace(place)
                    todo[self._actors[place].finish.remote()] = place

    def close(self) -> None:
        """Kills the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._folding = [], []

    def _catches_up(self, place: int) -> bool:
        """Waits for the oldest unit at an actor; returns whether there is room for another."""
        folding = self._folding[place]
        done, _ = self._ray.wait([folding[0]], timeout=HELD_UP)
        if not done:
            return False
        if self._is_lost(folding.popleft()):
            self._replace(place)
        return True

    def _is_lost(self, ref: Any) -> bool:  # noqa: ANN401
        """Whether the actor is gone. An error of our own is raised: what is damaged stays so.

        Raises:
            PipelineError: The reducer raised it.
        """
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as exc:
            raise own(exc) from exc
        except self._ray.exceptions.RayError:
            return True
        return False

    def _replace(self, place: int) -> None:
        """Another actor takes the share; it begins with what the lost one had written.

        Raises:
            WorkerLostError: Actors died, or hung, again and again.
        """
        self._losses += 1
        if self._losses >= ATTEMPTS * len(self._actors):
            raise WorkerLostError("reducing the sketches", self._losses, "reducers died, or did not answer")
        self._ray.kill(self._actors[place])
        self._actors[place] = self._start(self._shares[place])
        self._folding[place].clear()

    def _start(self, owned: range) -> Any:  # noqa: ANN401
        actor = self._ray.remote(Reducer)
        environment = {"OMP_NUM_THREADS": "1"}
        return actor.options(
            num_cpus=0, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": environment}
        ).remote(*self._arguments, owned)
