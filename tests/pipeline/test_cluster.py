"""A real local Ray: what it listens on, and what happens when its workers die."""

import stat
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from pipeline.cluster.connect import connected, token_file
from pipeline.cluster.crew import Berths, RayCrew
from pipeline.cluster.workers import check_room
from pipeline.errors import ClusterError, StoreError, WorkerLostError
from pipeline.scheduling import Policy, Scheduler
from tests.pipeline.scheduling.simulation import Records, units
from tests.pipeline.scheduling.stand_in import StandIn


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with connected("local", 3) as ray:
        yield ray
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()], "Ray left something behind"


@pytest.fixture(scope="module")
def crew(ray) -> Iterator[RayCrew]:
    crew = RayCrew(ray, Berths("local", num_workers=2, threads=1, gpus=0), StandIn, ({}, "nobody"))
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def scheduler(crew) -> Scheduler:
    """Runs units without a hurry: nothing is raced."""
    return Scheduler(crew, Records(), Policy(deadline=3.0, race_after=1e9))


def sockets() -> list[tuple[str, str]]:
    me = psutil.Process()
    return [
        (process.name(), connection.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def landed(crew: RayCrew, scheduler: Scheduler, number: int, deeds: dict[tuple[int, int], str], name: str = "") -> Any:
    """The receipts of units, of workers that do as told."""
    crew.turn(deeds, name)
    scheduler.turn(Records())
    receipts = sorted(scheduler.run(units(number)), key=lambda receipt: receipt.unit)
    assert [receipt.unit for receipt in receipts] == list(range(number))
    return receipts


def test_ray_listens_on_loopback_alone_with_a_private_token(crew, scheduler):
    landed(crew, scheduler, 2, {})
    found = sockets()
    assert {ip.removeprefix("::ffff:") for _, ip in found} == {"127.0.0.1"}
    assert any(name == "gcs_server" for name, _ in found), "the sockets of Ray itself were not seen"
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600


def test_workers_that_find_no_room_are_refused_with_the_numbers(ray):
    with pytest.raises(ClusterError, match="4 workers need 4 CPUs and it has 3"):
        check_room(ray, Berths("local", 4, 1, 0))


@pytest.mark.slow
def test_workers_that_die_are_replaced_and_turn_to_another_run_as_the_others_do(crew, scheduler):
    first = landed(crew, scheduler, 8, {(2, 1): "die"}, "first")
    assert first[2].attempt > 1
    second = landed(crew, scheduler, 8, {(3, 1): "leave"}, "second")
    assert second[3].attempt > 1
    assert {receipt.model for receipt in first} == {"first"}
    assert {receipt.model for receipt in second} == {"second"}
    assert {receipt.worker for receipt in first} & {receipt.worker for receipt in second}


@pytest.mark.slow
def test_a_stopped_worker_is_ended_at_the_deadline(crew, scheduler):
    receipts = landed(crew, scheduler, 6, {(1, 1): "stop"})
    assert receipts[1].attempt > 1
    assert psutil.STATUS_STOPPED not in {one.status() for one in psutil.Process().children(recursive=True)}


def test_errors_of_workers_arrive_as_themselves(crew, scheduler):
    with pytest.raises(StoreError, match="a cannot be written: b"):
        landed(crew, scheduler, 2, {(1, 1): "raise"})


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "error"), [("raise", StoreError), ("leave", WorkerLostError)])
def test_what_is_wrong_at_the_start_is_told_and_nothing_is_started_for_ever(ray, deed, error):
    crew = RayCrew(ray, Berths("local", 1, 1, 0), StandIn, ({(-1, 1): deed}, ""))
    with pytest.raises(error, match=r"cannot be written|while it loaded the model"):
        Scheduler(crew, Records(), Policy(start_attempts=2)).muster()
    crew.close()
