"""Actors that cannot be reached, on a Ray that is not there: what its calls end with is told here."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import crew as crew_module
from pipeline.cluster.crew import Berths, RayCrew
from pipeline.errors import ClusterError
from pipeline.scheduling import Extract, Failed, Finished, Lost, Ready
from schemas.treatment import Treatment
from tests.pipeline.scheduling.simulation import receipt_of, units

UNITS = units(3)
TASKS = [Extract(unit, Treatment()) for unit in UNITS]


class RayError(Exception): ...


class ActorDiedError(RayError): ...


class ActorUnavailableError(RayError): ...


class OutOfMemoryError(RayError): ...


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class Actor:
    """Remembers what was called, and the futures with which the calls will end."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Future[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            future: Future[Any] = Future()
            self.calls.append((name, future))
            return SimpleNamespace(future=lambda: future)

        return SimpleNamespace(remote=remote)


class AbsentRay:
    exceptions = SimpleNamespace(
        RayError=RayError,
        ActorUnavailableError=ActorUnavailableError,
        OutOfMemoryError=OutOfMemoryError,
        RayTaskError=RayTaskError,
    )

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []
        self.alive = True

    def remote(self, worker: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *arguments: self._actor()))

    def _actor(self) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": self.alive}]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(crew_module, "ASK_EVERY", 0.01)
    monkeypatch.setattr(crew_module, "LOOK_EVERY", 0.01)


@pytest.fixture
def ray() -> AbsentRay:
    return AbsentRay()


@pytest.fixture
def crew(ray) -> RayCrew:
    """One worker, which is ready and has three tasks."""
    crew = RayCrew(ray, Berths("elsewhere", 1, 1, 0), object, (), reachable_within=0.1)
    crew.start(0)
    ray.actors[0].calls[0][1].set_result(77)
    assert crew.wait(1) == [Ready(0)]
    for task in TASKS:
        crew.submit(0, task)
    return crew


def test_an_actor_that_comes_back_repeats_what_may_not_have_run_in_order(ray, crew):
    (actor,) = ray.actors
    _, first, second, third = (future for _, future in actor.calls)
    first.set_exception(ActorUnavailableError())
    second.set_exception(ActorUnavailableError())
    assert crew.wait(0.02) == []
    assert [name for name, _ in actor.calls[4:]] == ["ready"]
    actor.calls[4][1].set_result(77)
    assert crew.wait(0.02) == []
    assert [name for name, _ in actor.calls[5:]] == ["extract"] * 2
    receipts = [receipt_of(unit, 1) for unit in UNITS]
    for future, receipt in zip((third, actor.calls[6][1], actor.calls[5][1]), receipts[::-1], strict=True):
        future.set_result(receipt)
    events = crew.wait(1)
    assert events == [Finished(0, task, receipt) for task, receipt in zip(TASKS, receipts, strict=True)]
    assert not ray.killed


def test_an_actor_that_does_not_come_back_is_killed_and_lost(ray, crew):
    ray.actors[0].calls[1][1].set_exception(ActorUnavailableError())
    assert crew.wait(0.05) == []
    assert not ray.killed
    assert crew.wait(1) == [Lost(0, "unreachable")]
    assert ray.killed == ray.actors
    ray.actors[0].calls[2][1].set_result(None)
    assert crew.wait(0.02) == [], "nothing is heard of one that is gone"


def test_an_actor_is_asked_again_and_again_but_not_without_pause(ray, crew):
    (actor,) = ray.actors
    actor.calls[1][1].set_exception(ActorUnavailableError())
    crew.wait(0.0)
    for _ in range(5):
        actor.calls[-1][1].set_exception(ActorUnavailableError())
        crew.wait(0.012)
    assert 3 <= len(actor.calls[4:]) <= 8


def test_an_actor_that_turns_out_to_be_dead_is_dead(ray, crew):
    (actor,) = ray.actors
    actor.calls[1][1].set_exception(ActorUnavailableError())
    assert crew.wait(0.0) == []
    actor.calls[-1][1].set_exception(ActorDiedError())
    assert crew.wait(1) == [Lost(0, "died")]


def test_the_first_call_tells_what_an_actor_died_of(ray, crew):
    _, first, second, _ = (future for _, future in ray.actors[0].calls)
    second.set_exception(ActorDiedError())
    assert crew.wait(0.02) == []
    first.set_exception(OutOfMemoryError())
    assert crew.wait(1) == [Lost(0, "memory")]


def test_what_finished_before_a_death_is_told_before_it(ray, crew):
    _, first, second, _ = (future for _, future in ray.actors[0].calls)
    second.set_exception(ActorDiedError())
    receipt = receipt_of(UNITS[0], 1)
    first.set_result(receipt)
    assert crew.wait(1) == [Finished(0, TASKS[0], receipt), Lost(0, "died")]


def test_an_error_leaves_the_actor_alone(ray, crew):
    error = ValueError("x")
    ray.actors[0].calls[1][1].set_exception(RayTaskError(error))
    assert crew.wait(1) == [Failed(0, TASKS[0], error)]
    assert not ray.killed


def test_without_workers_and_without_a_cluster_nobody_waits(ray):
    crew = RayCrew(ray, Berths("elsewhere", 1, 1, 0), object, ())
    crew.start(0)
    assert crew.wait(0.05) == []
    ray.alive = False
    with pytest.raises(ClusterError, match="none of its nodes is alive"):
        crew.wait(60)
