"""Faults 42 to 45: two at once."""

import os
import signal
import threading

import pytest

import act
from pipeline import artifact
from pipeline.storage import storage_at
from tests.faults.injection.armed import Fault
from tests.faults.runs import WARM, check_complete, make_case, receipts, tensors
from tests.faults.test_hangs import quick, wait_until_stopped


def test_42_two_drivers_at_once(trials, exact, tmp_path):
    """One works; the other leaves with 75, or finds all done. Same bits."""
    run = tmp_path / "run"
    both = [trials.start(["fit", exact.spec, "--run", run], settings=WARM) for _ in range(2)]
    codes = sorted(trial.end().code for trial in both)
    assert codes in ([0, 75], [0, 0]), codes
    check_complete(run, exact.run)


@pytest.mark.slow
def test_43_many_take_over_from_one_that_died(trials, exact, tmp_path):
    """One of them gets the run, under the next epoch."""
    run = tmp_path / "run"
    killed = trials.fit(exact.spec, run, Fault("pipeline.ledger:Ledger.commit", at=2, when="after"), settings=WARM)
    assert killed.code == -9
    takers = [trials.start(["fit", exact.spec, "--run", run], settings=WARM) for _ in range(3)]
    codes = sorted(trial.end().code for trial in takers)
    assert codes[0] == 0, codes
    assert set(codes) <= {0, 75}, codes
    check_complete(run, exact.run)
    epochs = sorted(int(path.name[:8]) for path in run.glob("lease/*.released"))
    assert len(epochs) == 1, "each owner clears up after those before it"
    assert epochs[0] > 1, "the killed one had the first"


@pytest.mark.slow
def test_44_a_unit_is_done_twice_with_other_bits(trials, llama, tmp_path):
    """An alarm: exit code 74, and what came first stays. (Equal bits are quiet: `test_hangs.test_16`.)"""
    case, run = quick(trials, tmp_path, llama), tmp_path / "again"
    faults = [
        Fault("pipeline.ledger:Ledger.publish", "stop", at=1),
        Fault("forward", "twice", at=2),
    ]
    slow = trials.start(["fit", case.spec, "--run", run], faults, WARM)
    wait_until_stopped(slow)
    assert trials.fit(case.spec, run, settings=WARM).code == 0
    first = receipts(run)
    slow.send(signal.SIGCONT)
    late = slow.end()
    assert late.code == 74, late
    assert "different bits" in late.err
    assert receipts(run) == first
    check_complete(run, case.run)


def test_45_a_reader_sees_the_old_or_the_new_steer(trials, exact, llama, tmp_path):
    """While a run publishes 60 times, each of two ways to load finds one of the two steers, whole."""
    other = make_case(trials, tmp_path, llama, law={"kind": "exact"}, transport={"method": "mean"})
    storage = storage_at(tmp_path / "published")
    steers = [act.load(case.run / "steer") for case in (exact, other)]
    known = {tensors(exact.run), tensors(other.run)}
    artifact.publish(storage, steers[0])
    failed: list[BaseException] = []

    def publish() -> None:
        try:
            for number in range(60):
                artifact.publish(storage, steers[number % 2])
        except BaseException as exc:  # noqa: BLE001 - told by the test
            failed.append(exc)

    writer = threading.Thread(target=publish)
    writer.start()
    seen = set()
    while writer.is_alive():
        found = artifact.find(storage)
        assert found is not None
        seen |= {found.card.tensors, act.load(os.path.join(storage.uri, "steer")).card.tensors}
    writer.join()
    assert not failed
    assert seen == known
