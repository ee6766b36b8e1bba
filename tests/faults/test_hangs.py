"""Faults 15 to 22 as one process meets them: it is stopped, slow, its clock jumps, or it finds no memory."""

import signal
import time
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.storage import storage_at
from tests.faults.injection.armed import Fault
from tests.faults.runs import WARM, check_complete, make_case, receipts, steer
from tests.faults.trials import Trial


def wait_until_stopped(trial: Trial) -> None:
    end = time.monotonic() + 30
    while Path(f"/proc/{trial.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end, "it was not stopped"
        time.sleep(0.005)


def quick(trials, folder, llama):
    """A case whose lease is short: a driver that stands still for half a second has lost its run."""
    return make_case(trials, folder, llama, law={"kind": "exact"}, failures={"lease": 0.5})


@pytest.mark.slow
def test_16_a_worker_wakes_after_its_unit_was_done_by_another(trials, llama, tmp_path):
    """Its late receipt is the second and loses; the first stays, byte for byte."""
    case, run = quick(trials, tmp_path, llama), tmp_path / "again"
    stop = Fault("pipeline.ledger:Ledger.commit", "stop", at=2)
    asleep = trials.start(["fit", case.spec, "--run", run], [stop], WARM)
    wait_until_stopped(asleep)
    assert trials.fit(case.spec, run, settings=WARM).code == 0
    first = receipts(run)
    asleep.send(signal.SIGCONT)
    late = asleep.end()
    assert late.code == 75, late
    assert receipts(run) == first
    check_complete(run, case.run)


def test_17_a_driver_wakes_after_another_took_its_run(trials, llama, tmp_path):
    """It finds its epoch gone before it publishes, and leaves with 75; the steer that counts is the other's."""
    case, run = quick(trials, tmp_path, llama), tmp_path / "again"
    asleep = trials.start(["fit", case.spec, "--run", run], [Fault("pipeline.fit:over_sites", "stop")], WARM)
    wait_until_stopped(asleep)
    assert not steer(run)
    assert trials.fit(case.spec, run, settings=WARM).code == 0
    theirs = steer(run)
    asleep.send(signal.SIGCONT)
    late = asleep.end()
    assert late.code == 75, late
    assert "took" in late.err, late.err
    assert steer(run) == theirs
    check_complete(run, case.run)


@pytest.mark.slow
def test_18_a_slow_disk(trials, exact, tmp_path):
    """Writes that take long change nothing but the time."""
    run = tmp_path / "run"
    done = trials.fit(exact.spec, run, Fault("fsync", "sleep:0.05", at=5, last=9), settings=WARM)
    assert done.code == 0, done
    check_complete(run, exact.run)


@pytest.mark.slow
def test_19_the_wall_clock_jumps(trials, exact, tmp_path):
    """An hour back while a unit runs, and an hour on while another does: nobody looks at that clock."""
    run = tmp_path / "run"
    faults = [
        Fault("pipeline.ledger:Ledger.commit", "clock:-3600", at=1),
        Fault("pipeline.ledger:Ledger.commit", "clock:7200", at=2),
    ]
    done = trials.fit(exact.spec, run, *faults, settings=WARM)
    assert done.code == 0, done
    check_complete(run, exact.run)


@pytest.mark.slow
def test_21_torch_finds_no_memory(trials, exact, tmp_path):
    """The micro-batch is split and the split is recorded; every prompt counts. The first forward is the frame's."""
    run = tmp_path / "run"
    done = trials.fit(exact.spec, run, Fault("forward", "memory", at=2), settings=WARM)
    assert done.code == 0, done
    found = list(Ledger(storage_at(run), read_plan(storage_at(run))).receipts())
    assert [len(receipt.splits) for receipt in found] == [1, 0, 0, 0, 0]
    check_complete(run, exact.run)


@pytest.mark.slow
def test_21_torch_finds_no_memory_even_for_one_prompt(trials, exact, tmp_path):
    """It is split until one prompt is left, which is quarantined: more than the spec allows, so 65 and which it is."""
    run = tmp_path / "run"
    done = trials.fit(exact.spec, run, Fault("forward", "memory", at=2, last=3), settings=WARM)
    assert done.code == 65, done
    assert "out of memory, even alone" in done.err
