"""Faults 1 to 10: processes that die, or are told to. Those of Ray's own processes are in `test_ray.py`."""

import random
import signal
import time

import pytest

from tests.faults.injection.armed import Fault
from tests.faults.runs import WARM, check_complete, go_on, hurt, leftovers, receipts, steer, within


@pytest.mark.slow
def test_01_killed_before_any_write_of_a_unit(trials, exact, tmp_path):
    """The unit runs again; each prompt counts once; same bits."""
    hurt(trials, exact, tmp_path / "run", Fault("pipeline.extract:Extractor._extract", at=2), code=-9)
    assert len(receipts(tmp_path / "run")) == 1
    go_on(trials, exact, tmp_path / "run")


@pytest.mark.slow
def test_02_killed_between_two_files_of_a_unit(trials, sketch, tmp_path):
    """Without a receipt the unit runs again, whatever files are there."""
    run = tmp_path / "run"
    hurt(trials, sketch, run, Fault("pipeline.ledger:Ledger.publish", at=3, when="after"), code=-9)
    assert len(list(run.glob("sketches.zarr/*/c/1/0/0"))) == 1, "one of the two files of unit 1"
    assert len(receipts(run)) == 1
    go_on(trials, sketch, run)


def test_03_killed_within_a_file_of_a_unit(trials, exact, tmp_path):
    """A temporary file is left, nothing under the file's own name, and nobody folds it."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("link", match=within(run, r"activations\.zarr/source/c/1")), code=-9)
    assert [name for name in leftovers(run) if name.startswith("activations.zarr/source/c/1/")]
    assert not (run / "activations.zarr/source/c/1/0").exists()
    go_on(trials, exact, run)


def test_04_killed_after_the_files_and_before_the_receipt(trials, exact, tmp_path):
    """The unit runs again to the same bits, and has one receipt."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=2), code=-9)
    file = run / "activations.zarr/source/c/1/0"
    before = file.read_bytes(), file.stat().st_ino
    go_on(trials, exact, run)
    assert (file.read_bytes(), file.stat().st_ino) == before, "what has the same bits already is left"


@pytest.mark.slow
def test_05_killed_after_the_receipt_and_before_the_answer(trials, exact, tmp_path):
    """The folder is believed, not the answer: the unit does not run again."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=2, when="after"), code=-9)
    assert len(receipts(run)) == 2
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize(("does", "code"), [("exit:7", 7), ("segfault", -11)])
def test_06_ends_by_itself(trials, exact, tmp_path, does, code):
    """As a SIGKILL: an exit without farewell, and a fault of memory."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.extract:Extractor._extract", does, at=3), code=code)
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["pipeline.reduce:Reducer.fold", "pipeline.folds:Folds.drop", "write", "replace"])
def test_08_reducer_killed_while_it_folds(trials, sketch, tmp_path, point):
    """Folds are made again from receipts; integer sums are equal."""
    run = tmp_path / "run"
    match = within(run, "folds/") if ":" not in point else ""
    often = Fault("pipeline.reduce:Reducer.__init__", "set:pipeline.reduce.WRITE_EVERY=1")
    hurt(trials, sketch, run, often, Fault(point, at=2, match=match), code=-9)
    go_on(trials, sketch, run)


@pytest.mark.slow
def test_09_driver_killed_at_random_times_again_and_again(trials, sketch, tmp_path):
    """Every start goes on; what is finished is not done again."""
    rng, run, kills = random.Random(9), tmp_path / "run", 0
    while not steer(run) and kills < 4:
        trial = trials.start(["fit", sketch.spec, "--run", run], settings=WARM)
        time.sleep(rng.uniform(0.05, 0.4))
        trial.send(signal.SIGKILL)
        kills += trial.end().code == -9
    go_on(trials, sketch, run)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_10_told_to_stop(trials, exact, tmp_path, number):
    """Exit code 75, the lease is given back, and one sentence with the command that goes on."""
    run = tmp_path / "run"
    faults = [Fault("pipeline.ledger:Ledger.commit", f"signal:{int(number)}", at=2, when="after")]
    done = hurt(trials, exact, run, *faults, code=75)
    assert done.err.splitlines()[-1] == "actmap: stopped; run the same command again to go on from what is done"
    assert list(run.glob("lease/*.released"))
    go_on(trials, exact, run)


@pytest.mark.slow
def test_10_told_to_stop_twice(trials, exact, tmp_path):
    """The second Ctrl-C comes while the first is obeyed."""
    run = tmp_path / "run"
    faults = [
        Fault("pipeline.ledger:Ledger.commit", f"signal:{int(signal.SIGINT)}", at=2, when="after"),
        Fault("pipeline.lease:Lease.release", f"signal:{int(signal.SIGINT)}"),
    ]
    hurt(trials, exact, run, *faults, code=75)
    go_on(trials, exact, run)


def test_a_finished_run_is_left_as_it_is(trials, exact, tmp_path):
    """What the tests here rest on: an undisturbed run is complete, and running it again changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in exact.run.rglob("*")}
    go_on(trials, exact, exact.run)
    check_complete(exact.run, exact.run)
    assert {path: path.stat().st_mtime_ns for path in exact.run.rglob("*")} == before
