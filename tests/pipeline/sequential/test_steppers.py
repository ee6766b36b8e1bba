"""Steppers on a real Ray: the same bits from any number of them, whichever dies where."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.connect import connected
from pipeline.cluster.crew import Berths
from pipeline.cluster.steppers import RaySteppers
from pipeline.errors import DamagedRunError, WorkerLostError
from pipeline.plan import read_plan
from pipeline.sequential.drive import SequentialFit
from pipeline.storage import LocalStorage
from schemas.plan import Unit
from schemas.site_map import SiteMap
from tests.jobs.runs import run
from tests.models import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEQUENTIAL = {"estimation": "sequential", "law": {"kind": "sketch"}}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with connected("local", 3) as ray:
        yield ray


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A sequential run that one process did."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, {"kind": "causal-lm", "path": str(tiny_llama(folder / "llama"))}, **SEQUENTIAL)
    return folder / "run"


@pytest.fixture
def half(finished, tmp_path) -> LocalStorage:
    """The same with the target's units alone."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    for path in ("sequential", "receipts/source", "steers", "sketches.zarr/source", "sketches.zarr/tokens"):
        shutil.rmtree(tmp_path / "run" / path)
    return LocalStorage(tmp_path / "run")


def step_through(
    ray: Any, storage: LocalStorage, workers: int, on_site: Callable[[RaySteppers], None], deadline: float = 300.0
) -> None:
    """Fits a run on actors; `on_site` is called after each site."""
    steppers = RaySteppers(ray, Berths("local", workers, 1, 0), read_plan(storage), storage.uri, deadline, none_found)
    try:
        receipts = list(SequentialFit(storage, read_plan(storage), steppers).run(lambda: on_site(steppers)))
    finally:
        steppers.close()
    assert [receipt.unit for receipt in receipts] == list(range(5))


def none_found(units: Sequence[Unit]) -> bool:
    """A rehearsal that every unit survives."""
    return False


def harm_stepper(steppers: RaySteppers, place: int, number: int) -> None:
    """Sends a signal to a stepper's process."""
    pid = steppers._places[place].pid
    assert pid is not None
    os.kill(pid, number)


def maps(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "sequential").glob("*.json"))}


def shards(root: Path) -> dict[str, bytes]:
    folders = ("sketches.zarr/source", "sketches.zarr/tokens", "activations.zarr/source")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for name in folders
        for path in (root / name).rglob("c/*/*")
        if path.is_file()
    }


def test_workers_change_no_bit(ray, half, finished):
    step_through(ray, half, 3, lambda steppers: None)
    assert maps(half.root) == maps(finished)
    assert shards(half.root) == shards(finished) != {}


@pytest.mark.parametrize(("number", "sites"), [(signal.SIGKILL, (0, 3)), (signal.SIGSTOP, (1,))])
def test_a_stepper_that_dies_or_hangs_is_replaced_and_takes_its_units_through_the_maps_so_far(
    ray, half, finished, number, sites
):
    seen: list[int] = []

    def harm(steppers: RaySteppers) -> None:
        if len(seen) in sites:
            harm_stepper(steppers, len(seen) % 2, number)
        seen.append(len(maps(half.root)))

    step_through(ray, half, 2, harm, deadline=20.0 if number == signal.SIGSTOP else 300.0)
    assert seen == [1, 2, 3, 4, 5], "no site was fitted twice"
    assert maps(half.root) == maps(finished)
    assert shards(half.root) == shards(finished)


def test_a_stepper_that_dies_while_units_are_stored_loses_no_receipt(ray, half, finished):
    """It is killed after the last site; the others have stored theirs, and say so again."""
    steppers = RaySteppers(ray, Berths("local", 2, 1, 0), read_plan(half), half.uri, 300.0, none_found)
    fit, ends = steppers.fit, len(maps(finished))

    def last(treated: str, sites: tuple[int, ...], *, ends: bool) -> list[SiteMap]:
        fitted = fit(treated, sites, ends=ends)
        if ends:
            ray.get(steppers._places[0].actor.finish.remote(fitted))
            harm_stepper(steppers, 1, signal.SIGKILL)
        return fitted

    steppers.fit = last  # type: ignore[method-assign]
    try:
        receipts = list(SequentialFit(half, read_plan(half), steppers).run())
    finally:
        steppers.close()
    assert (len(receipts), ends) == (5, 5)
    assert shards(half.root) == shards(finished)


def test_steppers_that_die_again_and_again_end_the_fit(ray, half):
    def kill_all(steppers: RaySteppers) -> None:
        steppers._num_losses = 5
        harm_stepper(steppers, 0, signal.SIGKILL)

    with pytest.raises(WorkerLostError, match="on its way from site to site"):
        step_through(ray, half, 2, kill_all)


def test_errors_of_steppers_arrive_as_themselves(ray, half):
    (half.root / "receipts/target/00000001.json").write_text("{")
    with pytest.raises(DamagedRunError, match="receipts/target"):
        step_through(ray, half, 2, lambda steppers: None)
