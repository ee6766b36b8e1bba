"""The sweep: a run dies, or its disk fails, at each of its operations on files, and goes on to the same bits."""

import random
import shutil
from pathlib import Path

import pytest

from tests.faults.injection.armed import Fault
from tests.faults.runs import WARM, Case, check_sound, go_on, within
from tests.faults.trials import Trials

SEED = 20

#: What happens at an operation, and how the run ends then.
KILL, TEAR, ONCE, FROM = "kill", "tear", "once", "from"


@pytest.fixture(params=["exact", "sketch"])
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def points(trials: Trials, case: Case, folder: Path) -> list[tuple[str, int]]:
    """All that can happen, and at which operation: an undisturbed run has as many each time."""
    run, met = folder / "counted", {KILL: "change", TEAR: "write", ONCE: "growth", FROM: "growth"}
    counts = [Fault(point, f"count:{folder / how}", last=0, match=within(run)) for how, point in met.items()]
    done = trials.fit(case.spec, run, *counts, settings=WARM)
    assert done.code == 0, done
    return [(how, at) for how in met for at in range(1, (folder / how).stat().st_size + 1)]


def fault(how: str, at: int, run: Path) -> Fault:
    match how:
        case "kill":
            return Fault("change", "kill", at, match=within(run))
        case "tear":
            return Fault("write", "tear", at, match=within(run))
        case "once":
            return Fault("growth", "errno:ENOSPC", at, match=within(run))
        case _:
            return Fault("growth", "errno:ENOSPC", at, last=0, match=within(run))


def try_point(trials: Trials, case: Case, how: str, at: int, folder: Path) -> None:
    """Does it, looks at what is left, and runs the same command again."""
    run = folder / f"{how}-{at}"
    hurt = trials.fit(case.spec, run, fault(how, at, run), settings=WARM)
    assert hurt.code in ({-9} if how in {KILL, TEAR} else {0, 74}), (how, at, hurt)
    if hurt.code == 74:
        assert len(hurt.err.strip().splitlines()[-1]) < 500, hurt.err
    check_sound(run)
    go_on(trials, case, run)
    shutil.rmtree(run)


def sweep(trials: Trials, case: Case, chosen: list[tuple[str, int]], folder: Path) -> None:
    for how, at in chosen:
        try_point(trials, case, how, at, folder)
    told = {how: sum(one == how for one, _ in chosen) for how in (KILL, TEAR, ONCE, FROM)}
    print(f"{len(chosen)} points tried: {told}")  # noqa: T201


def test_a_run_killed_or_refused_at_some_of_its_operations_goes_on_to_the_same_bits(trials, case, tmp_path, capsys):
    """A seeded few of the points; `test_every_operation` tries them all."""
    every = points(trials, case, tmp_path)
    chosen = random.Random(SEED).sample(every, 3)
    with capsys.disabled():
        sweep(trials, case, chosen, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_operation(trials, case, tmp_path, capsys):
    """All points: SIGKILL at each operation, half of each write and then SIGKILL, a full disk once and from then on."""
    with capsys.disabled():
        sweep(trials, case, points(trials, case, tmp_path), tmp_path)
