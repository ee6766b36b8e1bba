"""What steppers on Ray do about actors that die again and again. Ray is a stand-in here: it only loses actors."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.cluster.crew import Berths
from pipeline.cluster.steppers import RaySteppers
from pipeline.errors import WorkerLostError
from pipeline.sequential.drive import BeginAnew
from schemas.plan import Unit
from schemas.treatment import Treatment
from tests.pipeline.made import made_plan

UNITS = [Unit("source", number, 2 * number, 2 * number + 2) for number in range(4)]


class RayError(Exception):
    pass


class StandIn:
    """A Ray whose actors die at the step, in the places that are told to, one after the other."""

    class exceptions:
        RayError = RayError
        RayTaskError = type("RayTaskError", (RayError,), {})

    def __init__(self, dying: Sequence[int]) -> None:
        self._dying, self._actors = itertools.cycle(dying), list[Any]()

    def remote(self, stepper: type) -> "StandIn":
        return self

    def options(self, **options: Any) -> Any:
        ray = self

        class Call:
            def __init__(self, actor: Any, name: str) -> None:
                self.actor, self.name = actor, name

            def remote(self, *arguments: Any, **settings: Any) -> "Call":
                return self

        class Actor:
            def __init__(self) -> None:
                self.dead = False

            @classmethod
            def remote(cls, *arguments: Any) -> "Actor":
                ray._actors.append(cls())
                return ray._actors[-1]

            def __getattr__(self, name: str) -> Call:
                return Call(self, name)

        return Actor

    def get(self, refs: Any, timeout: float | None = None) -> Any:
        refs = refs if isinstance(refs, list) else [refs]
        if any(ref.name == "step" for ref in refs):
            refs[next(self._dying)].actor.dead = True
        if any(ref.actor.dead for ref in refs):
            raise RayError
        return [None for _ in refs]

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return refs, []

    def kill(self, actor: Any) -> None:
        actor.dead = True


def stepping(dying: Sequence[int], culprits: set[int], num_workers: int = 2) -> list[list[int]]:
    """Steps until it ends; returns the units of each rehearsal. Those that hold a culprit find it."""
    rehearsed: list[list[int]] = []

    def rehearse(units: Sequence[Unit]) -> bool:
        rehearsed.append([unit.index for unit in units])
        return not culprits.isdisjoint(rehearsed[-1])

    plan = made_plan(failures={"attempts": 3})
    steppers = RaySteppers(StandIn(dying), Berths("", num_workers, 1, 0), plan, "", 1.0, rehearse)
    steppers.begin(dict.fromkeys(UNITS, Treatment()), [])
    with pytest.raises(BeginAnew if culprits else WorkerLostError):
        steppers.fit("", (0,), ends=False)
    return rehearsed


def test_the_units_of_a_place_that_dies_again_and_again_are_rehearsed():
    assert stepping([1], {2}) == [[2, 3]]


def test_each_place_that_dies_again_and_again_is_rehearsed_by_itself():
    assert stepping([0, 1], {3}) == [[0, 1], [2, 3]]
    assert stepping([0, 1, 2, 3], {3}, num_workers=4) == [[0], [1], [2], [3]]


def test_losses_of_which_no_prompt_is_to_blame_end_in_the_end():
    assert stepping([0], set()) == [[0, 1], [0, 1]]
    assert stepping([0, 1], set()) == [[0, 1], [2, 3]]
