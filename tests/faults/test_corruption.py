"""Faults 32 to 41: bytes that are not those that were written. `tests/pipeline/test_verify.py` flips every file.

Each is found before it is used: the command stops with 74 and names the file, or does not need it at all.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import WARM, Case, check_complete, tensors

Damage = Callable[[Path], None]


def flip(place: float) -> Damage:
    """Flips a bit at a share of the length of a file."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(len(data) - 1, int(place * len(data)))] ^= 4
        path.write_bytes(data)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def clear(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def copy(case: Case, folder: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(case.run, folder / "run", symlinks=True))


def forget_the_steer(run: Path) -> None:
    """Has the fit to be done again, from the units."""
    shutil.rmtree(run / "steers")
    (run / "CURRENT").unlink()
    (run / "steer").unlink()


def refuse(trials, case: Case, run: Path, name: str) -> None:
    """Checks that the command stops, names a file, and publishes no other steer."""
    before = list(run.glob("steers/*"))
    done = trials.fit(case.spec, run, settings=WARM)
    assert done.code == 74, done
    assert name in done.err, done.err
    assert list(run.glob("steers/*")) == before


SHARD = "activations.zarr/source/c/1/0"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip(0.3), id="32-data"),
        pytest.param(flip(0.99), id="33-index"),
        pytest.param(Path.unlink, id="34-missing"),
        pytest.param(empty, id="35-length-0"),
        pytest.param(cut, id="36-cut"),
        pytest.param(append, id="36-appended"),
        pytest.param(clear, id="36-zeroed"),
    ],
)
def test_32_to_36_a_shard_is_damaged(trials, exact, tmp_path, damage):
    """Found before a sample of it is used, and named."""
    run = copy(exact, tmp_path)
    forget_the_steer(run)
    damage(run / SHARD)
    refuse(trials, exact, run, SHARD)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip(0.5), Path.unlink, cut], ids=["flipped", "missing", "cut"])
def test_32_to_36_a_fold_is_damaged_and_its_units_are_gone(trials, sketch, tmp_path, damage):
    """What only the fold has cannot be added up again: named, not skipped."""
    run = copy(sketch, tmp_path)
    forget_the_steer(run)
    damage(next(run.glob("folds/source/*/c/0/0")))
    refuse(trials, sketch, run, "sketches.zarr/source")


@pytest.mark.slow
def test_37_the_metadata_of_an_array_lies(trials, exact, tmp_path):
    """Another byte order and shape: nobody believes them, and the bits are the same."""
    run = copy(exact, tmp_path)
    forget_the_steer(run)
    path = run / "activations.zarr/source/zarr.json"
    path.write_text(path.read_text().replace('"little"', '"big"').replace('"shape": [', '"shape": [1'))
    done = trials.fit(exact.spec, run, settings=WARM)
    assert done.code == 0, done
    assert tensors(run) == tensors(exact.run)


def test_38_two_shards_change_places(trials, exact, tmp_path):
    """Every checksum within them is right; only the receipts tell."""
    run = copy(exact, tmp_path)
    forget_the_steer(run)
    shards = [run / f"activations.zarr/source/c/{unit}/0" for unit in (0, 1)]
    first, second = (shard.read_bytes() for shard in shards)
    shards[0].write_bytes(second)
    shards[1].write_bytes(first)
    refuse(trials, exact, run, "activations.zarr/source/c/0/0")


def copied_from_another_unit(path: Path) -> None:
    path.write_bytes(path.with_name("00000000.json").read_bytes())


@pytest.mark.parametrize("damage", [flip(0.5), cut, copied_from_another_unit], ids=["flipped", "cut", "another's"])
def test_39_a_receipt_is_damaged(trials, exact, tmp_path, damage):
    """It is no receipt of its unit, and says so, of a run that is finished too."""
    run = copy(exact, tmp_path)
    damage(run / "receipts/source/00000001.json")
    forget_the_steer(run)
    refuse(trials, exact, run, "receipts/source/00000001.json")


@pytest.mark.slow
def test_39_a_receipt_comes_from_another_run(trials, exact, sketch, tmp_path):
    """Its plan is not this one."""
    run = copy(exact, tmp_path)
    forget_the_steer(run)
    shutil.copy(sketch.run / "receipts/source/00000001.json", run / "receipts/source/00000001.json")
    refuse(trials, exact, run, "receipts/source/00000001.json")


@pytest.mark.parametrize("place", [0.02, 0.9], ids=["name", "data"])
def test_40_a_steers_tensors_are_damaged(trials, exact, tmp_path, place):
    """A flip in the name of a tensor, and one in its data: the card's hash finds both."""
    run = copy(exact, tmp_path)
    flip(place)(next(run.glob("steers/*/steer.safetensors")))
    refuse(trials, exact, run, "steer.safetensors")


@pytest.mark.parametrize("name", ["CURRENT", "plan.json", "steers/*/steer.json"])
@pytest.mark.parametrize("place", [0.1, 0.6])
def test_41_current_plan_or_card_are_damaged(trials, exact, tmp_path, name, place):
    """Exit code 74 with the file's name."""
    run = copy(exact, tmp_path)
    path = next(run.glob(name))
    flip(place)(path)
    refuse(trials, exact, run, path.name)


@pytest.mark.slow
def test_a_copy_of_a_run_is_as_good_as_the_run(trials, exact, tmp_path):
    """What the tests here rest on: fitted again from its units, a copy gives the same steer."""
    run = copy(exact, tmp_path)
    forget_the_steer(run)
    done = trials.fit(exact.spec, run, settings=WARM)
    assert done.code == 0, done
    check_complete(run, exact.run)
