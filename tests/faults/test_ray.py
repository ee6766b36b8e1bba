"""The faults of workers, with real ones: a driver with a Ray of its own in each test. All are slow."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.storage import storage_at
from schemas.receipt import Receipt
from tests.faults import cluster
from tests.faults.injection.armed import Fault
from tests.faults.runs import SOURCES, Case, check_complete, counted, make_case, receipts, write_spec
from tests.faults.test_input import MARK, mark_token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

#: Units enough that workers are met in their midst.
MANY = [f"{n} trains" for n in range(48)]
OTHERS = [f"{n} songs" for n in range(48)]
WORKERS = {"compute": {"workers": 2}}


@pytest.fixture(scope="module")
def many(trials, llama, tmp_path_factory) -> Case:
    """A run of 48 units by two workers, and its undisturbed twin in one process."""
    folder = tmp_path_factory.mktemp("many")
    prompts = {"source.txt": MANY, "target.txt": OTHERS}
    alone = make_case(trials, folder / "alone", llama, law={"kind": "sketch"}, **prompts)
    return Case(write_spec(folder / "two", llama, law={"kind": "sketch"}, **WORKERS, **prompts), alone.run)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def found(run: Path) -> list[Receipt]:
    return list(Ledger(storage_at(run), read_plan(storage_at(run))).receipts())


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("pipeline.extract:Extractor._extract", at=3), id="01"),
        pytest.param(Fault("pipeline.ledger:Ledger.publish", at=4, when="after"), id="02"),
        pytest.param(Fault("link", at=2, match=r"sketches\.zarr/\w+/c/"), id="03"),
        pytest.param(Fault("pipeline.ledger:Ledger.commit", at=3), id="04"),
        pytest.param(Fault("pipeline.ledger:Ledger.commit", at=3, when="after"), id="05"),
        pytest.param(Fault("pipeline.extract:Extractor._extract", "exit:7", at=3), id="06-exit"),
        pytest.param(Fault("pipeline.extract:Extractor._extract", "segfault", at=3), id="06-segfault"),
        pytest.param(Fault("pipeline.reduce:Reducer.fold", at=5), id="08"),
    ],
)
def test_01_to_08_a_worker_dies(many, cache, tmp_path, fault):
    """The run goes on by itself, to the same bits, without a second start."""
    once = Fault(**{**vars(fault), "once": str(tmp_path / "died"), "counted": [0]})
    done = cluster.fit(many.spec, tmp_path / "run", cache, once)
    assert done.code == 0, done
    assert (tmp_path / "died").exists()
    check_complete(tmp_path / "run", many.run)


def test_07_every_worker_dies_while_it_starts(many, cache, tmp_path):
    """Bounded: exit code 75 after a few, not one restart after the other for ever."""
    marks = tmp_path / "starts"
    faults = [Fault("pipeline.extract:Extractor.ready", does, last=0) for does in (f"count:{marks}", "kill")]
    done = cluster.fit(many.spec, tmp_path / "run", cache, *faults)
    assert done.code == 75, done
    assert marks.stat().st_size <= 12


def test_09_the_driver_is_killed_and_started_again_at_once(many, cache, tmp_path):
    """Workers of the dead driver, which go on for a while, do no harm."""
    run = tmp_path / "run"
    for count in (1, 12, 25):
        with cluster.driver(many.spec, run, cache) as process:
            cluster.wait_for_receipts(process, run, count)
            process.kill()
            process.wait()
    done = cluster.fit(many.spec, run, cache)
    assert done.code == 0, done
    check_complete(run, many.run)


@pytest.mark.parametrize(("name", "number"), [("raylet", 11), ("gcs_server", 12)])
def test_11_12_a_process_of_ray_is_killed(many, cache, tmp_path, name, number):
    """It ends well or with 75, or Ray ends the driver; the same command goes on."""
    run = tmp_path / "run"
    slow = Fault("pipeline.ledger:Ledger.commit", "sleep:0.3", last=0)
    with cluster.driver(many.spec, run, cache, [slow]) as process:
        cluster.wait_for_receipts(process, run, 3)
        cluster.child(process, name).kill()
        hurt = cluster.finish(process, 300)
    assert hurt.code in {0, 75, 1}, hurt
    done = cluster.fit(many.spec, run, cache)
    assert done.code == 0, done
    check_complete(run, many.run)


def patient(llama: Path, folder: Path, prompts: list[str], **failures: float) -> Path:
    failures = {"lease": 60.0, "deadline": 6.0, **failures}
    files = {"source.txt": prompts, "target.txt": OTHERS}
    return write_spec(folder, llama, law={"kind": "sketch"}, failures=failures, **WORKERS, **files)


def test_15_a_worker_is_stopped(many, llama, cache, tmp_path):
    """After its deadline it is killed and its unit runs elsewhere; the job does not wait for ever."""
    stop = Fault("pipeline.extract:Extractor._extract", "stop", at=3, once=str(tmp_path / "stopped"))
    done = cluster.fit(patient(llama, tmp_path / "spec", MANY), tmp_path / "run", cache, stop)
    assert done.code == 0, done
    assert (tmp_path / "stopped").exists()
    check_complete(tmp_path / "run", many.run)


def test_16_a_stopped_worker_wakes_after_its_unit_was_done(many, cache, tmp_path):
    """It is raced; when it wakes, its receipt is the second, and changes nothing."""
    run, commits = tmp_path / "run", tmp_path / "commits"
    faults = [
        Fault("pipeline.ledger:Ledger.commit", "stop", at=2, once=str(tmp_path / "stopped")),
        Fault("pipeline.ledger:Ledger.commit", f"count:{commits}", last=0, when="after"),
        Fault("pipeline.reduce:Reducer.finish", "sleep:20"),  # until then the workers are kept
    ]
    with cluster.driver(many.spec, run, cache, faults) as process:
        cluster.wait_for_receipts(process, run, 48)
        first = receipts(run)
        stopped = cluster.stopped(process)
        assert stopped, "it was not killed meanwhile"
        for one in stopped:
            one.send_signal(signal.SIGCONT)
        done = cluster.finish(process)
    assert done.code == 0, done
    assert commits.stat().st_size > 48, "a receipt came second"
    assert receipts(run) == first
    check_complete(run, many.run)


def test_18_a_straggler_is_raced(many, cache, tmp_path):
    """Its unit is given to an idle worker, and the first receipt counts: nobody waits for ten minutes."""
    sleep = Fault("pipeline.ledger:Ledger.commit", "sleep:600", at=5, once=str(tmp_path / "slept"))
    begin = time.monotonic()
    done = cluster.fit(many.spec, tmp_path / "run", cache, sleep)
    assert done.code == 0, done
    assert time.monotonic() - begin < 300
    assert (tmp_path / "slept").exists()
    check_complete(tmp_path / "run", many.run)


def test_20_a_worker_is_killed_for_want_of_memory(many, llama, cache, tmp_path):
    """Ray's monitor kills it; that is no poison, and no prompt is lost.

    It is the only one: another would race its unit, and the run could be over before the memory is full.
    """
    memory = psutil.virtual_memory()
    room = (memory.used + (4 << 30)) / memory.total
    size = min(12 << 30, memory.available - (2 << 30))  # more than the room, for others may give memory back meanwhile
    if room > 0.9 or size < 6 << 30:
        pytest.skip("this machine has no memory to spare")
    variables = {"RAY_memory_usage_threshold": f"{room:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    hoard = Fault("pipeline.extract:Extractor._extract", f"balloon:{size}", at=3, once=str(tmp_path / "hoarded"))
    compute, patience = {"workers": 1}, {"lease": 60.0, "deadline": 300.0}
    files = {"source.txt": MANY, "target.txt": OTHERS}
    spec = write_spec(tmp_path / "spec", llama, law={"kind": "sketch"}, compute=compute, failures=patience, **files)
    with cluster.driver(spec, tmp_path / "run", cache, [hoard], variables) as process:
        done = cluster.finish(process, 380)
    assert done.code == 0, done
    assert not [one for receipt in found(tmp_path / "run") for one in receipt.quarantined]
    assert [one for receipt in found(tmp_path / "run") for one in receipt.splits], "it was told from other deaths"
    check_complete(tmp_path / "run", many.run)


@pytest.mark.parametrize(("number", "does"), [(46, "kill"), (47, "hang")])
def test_46_47_a_prompt_ends_or_hangs_its_worker(llama, trials, cache, tmp_path, number, does):
    """Bisected and quarantined with a reason; the others keep their bits."""
    spoilt = [*MANY]
    spoilt[17] = f"no {MARK}"
    spec = patient(llama, tmp_path / "spec", spoilt, quarantine_at_most=0.1)
    token = mark_token(llama)
    done = cluster.fit(spec, tmp_path / "run", cache, Fault("forward", does, last=0, match=token), seconds=380)
    assert done.code == 0, done
    lost = [one for receipt in found(tmp_path / "run") for one in receipt.quarantined]
    assert [one.row for one in lost] == [17], lost
    assert lost[0].reason
    allowed, files = {"quarantine_at_most": 0.1, "lease": 60.0}, {"source.txt": spoilt, "target.txt": OTHERS}
    like = write_spec(tmp_path / "like", llama, law={"kind": "sketch"}, failures=allowed, **files)
    assert trials.fit(like, tmp_path / "other", Fault("forward", "nan", last=0, match=token)).code == 0
    assert counted(tmp_path / "run") == counted(tmp_path / "other")
    check_complete(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(("number", "does"), [(46, "kill"), (47, "hang")])
def test_46_47_a_prompt_ends_or_hangs_whoever_steps(llama, trials, cache, tmp_path, number, does):
    """It waits among many in a sequential fit: its unit is rehearsed alone, and the fit begins anew without it."""
    spoilt = [*MANY[:7], f"no {MARK}"]
    allowed, files = {"quarantine_at_most": 0.1, "lease": 60.0}, {"source.txt": spoilt, "target.txt": OTHERS[:8]}
    how = {"law": {"kind": "sketch"}, "estimation": "sequential"}
    spec = write_spec(tmp_path / "spec", llama, failures=allowed | {"deadline": 6.0}, **WORKERS, **how, **files)
    token = mark_token(llama)
    done = cluster.fit(spec, tmp_path / "run", cache, Fault("forward", does, last=0, match=token), seconds=390)
    assert done.code == 0, done
    lost = [one for receipt in found(tmp_path / "run") for one in receipt.quarantined]
    assert [one.row for one in lost] == [7], lost
    like = write_spec(tmp_path / "like", llama, failures=allowed, **how, **files)
    assert trials.fit(like, tmp_path / "other", Fault("forward", "nan", last=0, match=token)).code == 0
    check_complete(tmp_path / "run", tmp_path / "other")


def test_49_too_many_prompts_end_their_workers(llama, cache, tmp_path):
    """Exit code 65 and the list."""
    spoilt = [f"no {MARK}", *SOURCES]
    spec = patient(llama, tmp_path / "spec", spoilt, quarantine_at_most=0.0)
    done = cluster.fit(spec, tmp_path / "run", cache, Fault("forward", "kill", last=0, match=mark_token(llama)))
    assert done.code == 65, done
    assert "source row 0" in done.err
