"""Fault 14: the loss of power. What a run did to its files is replayed up to any moment; the unflushed is lost."""

import hashlib
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from schemas import record
from schemas.receipt import Receipt
from tests.faults.journal import Disk, Loss, Step, steps_in, write_out
from tests.faults.runs import WARM, Case, check_sound, go_on
from tests.faults.trials import Settings, Trials

SEED = 14


@pytest.fixture(params=["exact", "sketch"])
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def journal(trials: Trials, case: Case, folder: Path) -> list[Step]:
    """All that an undisturbed run does to its files."""
    path = folder / "journal.json"
    done = trials.fit(case.spec, folder / "watched", settings=Settings(warm=True, journal=str(path)))
    assert done.code == 0, done
    return steps_in(path)


def check_promises(left: dict[str, Any]) -> None:
    """Checks what a disk holds after the loss: a receipt speaks of files that are there, and so does `CURRENT`."""
    merged = {name.removesuffix(".json").rsplit("-", 1)[-1] for name in left if name.startswith("folds/")}
    for name, data in left.items():
        if name.startswith("receipts/") and not name.endswith(".partial"):
            for output in record.unseal(Receipt, data).outputs:
                if output.path in left:
                    assert hashlib.sha256(left[output.path]).hexdigest() == output.sha256, (name, output.path)
                else:
                    assert output.kind != "activations", (name, output.path)
                    assert merged, (name, output.path)
    if "CURRENT" in left:
        key = f"steers/{left['CURRENT'].decode().strip()}"
        assert left[f"{key}/steer.json"]
        assert left[f"{key}/steer.safetensors"]


def test_14_power_is_lost_at_any_moment(trials, case, tmp_path, capsys):
    """After every step, in each of three ways: what receipts speak of is on the disk, whole."""
    steps, disk, rng, tried = journal(trials, case, tmp_path), Disk(), random.Random(SEED), 0
    for step in steps:
        disk.take(step)
        for loss in get_args(Loss):
            check_promises(disk.lose(loss, rng))
            tried += 1
    assert b"".join(step[3] for step in steps), "the journal has what was written"
    with capsys.disabled():
        print(f"{tried} losses of power after {len(steps)} steps")  # noqa: T201


def recover(trials: Trials, case: Case, steps: list[Step], loss: Loss, folder: Path) -> None:
    disk = Disk()
    for step in steps:
        disk.take(step)
    write_out(disk.lose(loss, random.Random(len(steps))), folder)
    check_sound(folder)
    go_on(trials, case, folder, WARM)


@pytest.mark.slow
def test_14_runs_go_on_after_some_losses_of_power(trials, case, tmp_path):
    """A seeded few; `test_14_runs_go_on_after_every_loss_of_power` tries them all."""
    steps, rng = journal(trials, case, tmp_path), random.Random(SEED)
    for number, loss in enumerate(get_args(Loss)):
        recover(trials, case, steps[: rng.randint(len(steps) // 5, len(steps))], loss, tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_14_runs_go_on_after_every_loss_of_power(trials, case, tmp_path, capsys):
    """Every step, one of the three ways each in turn."""
    steps = journal(trials, case, tmp_path)
    for number in range(1, len(steps) + 1):
        recover(trials, case, steps[:number], get_args(Loss)[number % 3], tmp_path / str(number))
    with capsys.disabled():
        print(f"{len(steps)} recoveries")  # noqa: T201
