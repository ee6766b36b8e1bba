"""Runs that stop, by a signal or with their process, and go on with the same command."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.lease import Lease
from pipeline.storage import LocalStorage
from tests.command import ROOT, environment
from tests.jobs.runs import write_spec

UNITS = 120

#: Takes the lease of a run and dies with it.
TAKES = """
import os, sys
from pathlib import Path
from pipeline.lease import Lease
from pipeline.storage import LocalStorage

Lease(LocalStorage(Path(sys.argv[1]))).acquire()
os._exit(9)
"""


@pytest.fixture(scope="module")
def spec(llama, tmp_path_factory):
    """A spec of many small units, for a run that is long enough to be stopped in its midst."""
    folder = tmp_path_factory.mktemp("long")
    path = write_spec(
        folder,
        {"kind": "causal-lm", "path": str(llama)},
        compute={"unit_size": 2, "max_tokens": 16, "batch_tokens": 32},
        failures={"lease": 1.0},
        source={"path": "many.txt"},
        target={"path": "others.txt"},
    )
    for name, word in (("many.txt", "sea"), ("others.txt", "song")):
        (folder / name).write_text("".join(f"the {word} of {n}\n" for n in range(UNITS)))
    return path


@pytest.fixture(scope="module")
def undisturbed(actmap, spec):
    run = spec.parent / "undisturbed"
    assert actmap("fit", spec, "--run", run).code == 0
    return run


def receipts(run: Path) -> list[Path]:
    return sorted(run.glob("receipts/*/*.json"))


def shards(run: Path) -> dict[Path, int]:
    """The time of writing of the shard of each unit that has a receipt."""
    places = (
        run / "activations.zarr" / receipt.parent.name / "c" / str(int(receipt.stem)) / "0" for receipt in receipts(run)
    )
    return {place: place.stat().st_mtime_ns for place in places}


@contextmanager
def started(spec: Path, run: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A fit in a process of its own, in the midst of its units."""
    command = [sys.executable, "-m", "jobs.cli", "fit", str(spec), "--run", str(run)]
    with subprocess.Popen(
        command, env=environment(cache), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(receipts(run)) < 5 and process.poll() is None:
            time.sleep(0.005)
        yield process
        process.kill()


def same_bytes(run: Path, other: Path) -> bool:
    name = Path("steer") / "steer.safetensors"
    return (run / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL], ids=lambda number: number.name
)
def test_a_run_that_is_stopped_goes_on_with_the_same_command_to_the_same_steer(
    actmap, spec, undisturbed, tmp_path, number
):
    run = tmp_path / "run"
    with started(spec, run, actmap.cache) as process:
        process.send_signal(number)
        out, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 75
        assert (out, "Traceback" in err) == ("", False)
        assert err.splitlines()[-1] == "actmap: stopped; run the same command again to go on from what is done"
    before = shards(run)
    assert 0 < len(before) < UNITS
    assert not (run / "steer").exists()
    state = actmap("status", run, "--json").json
    assert (state["state"], state["units_done"], state["units"]) == ("extracting", len(before), UNITS)

    again = actmap("fit", spec, "--run", run, "--json")
    assert again.code == 0, again.err
    after = shards(run)
    assert len(after) == UNITS
    assert {place: after[place] for place in before} == before
    assert same_bytes(run, undisturbed)
    assert actmap("status", run, "--json").json["state"] == "done"


@pytest.mark.slow
def test_a_signal_that_was_ignored_when_the_command_began_stops_it_too(actmap, spec, tmp_path):
    run = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does for `command &`
    try:
        with started(spec, run, actmap.cache) as process:
            signal.signal(signal.SIGINT, before)
            process.send_signal(signal.SIGINT)
            process.communicate()
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 75


@pytest.mark.slow
def test_a_second_driver_is_turned_away_and_the_first_goes_on(actmap, spec, undisturbed, tmp_path):
    run = tmp_path / "run"
    with started(spec, run, actmap.cache) as process:
        second = actmap("fit", spec, "--run", run)
        assert process.poll() is None
        _, err = process.communicate()
    assert second.code == 75
    assert second.err.splitlines()[-1] == (
        f"actmap: another process works on {run} (process {process.pid} on {socket.gethostname()}); wait for it, or "
        "name another folder"
    )
    assert process.returncode == 0, err
    assert same_bytes(run, undisturbed)


def test_the_lease_of_a_process_that_died_holds_nobody_up_and_one_that_is_held_keeps_only_fits_out(
    actmap, fitted, tmp_path
):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    (run / "CURRENT").unlink()
    spec = tmp_path / "spec.yaml"
    for name in ("source.txt", "target.txt"):
        shutil.copy(fitted.parent / name, tmp_path)
    spec.write_text((fitted.parent / "spec.yaml").read_text() + "failures: {lease: 0.5}\n")
    with Lease(LocalStorage(run), seconds=0.5).held():
        assert actmap("fit", spec, "--run", run).code == 75
        assert actmap("status", run).code == 0
    died = subprocess.run([sys.executable, "-c", TAKES, str(run)], cwd=ROOT, env=environment(actmap.cache), check=False)
    assert died.returncode == 9
    assert actmap("fit", spec, "--run", run).code == 0
    assert same_bytes(run, fitted)


def test_a_finished_run_is_left_as_it_is(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in run.rglob("*")}
    again = actmap("fit", fitted.parent / "spec.yaml", "--run", run, "--json")
    assert again.code == 0
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in run.rglob("*")} == before


def test_a_run_whose_plan_alone_was_written_goes_on(actmap, fitted, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(fitted / "plan.json", run)
    assert actmap("fit", fitted.parent / "spec.yaml", "--run", run).code == 0
    assert same_bytes(run, fitted)


def test_leftovers_of_torn_writes_change_nothing(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    (run / "CURRENT").unlink()
    (run / "steer").unlink()
    (run / "receipts" / "target" / "00000001.json").unlink()
    (run / "receipts" / "target" / ".00000001.json.1.ab.partial").write_bytes(b"{")
    (run / "activations.zarr" / "target" / "c" / "1" / "0").write_bytes(b"torn")
    (run / ".steer.1.ab.partial").symlink_to("steers/none")
    (run / ".CURRENT.1.ab.partial").write_bytes(b"0")
    before = shards(run)
    assert actmap("fit", fitted.parent / "spec.yaml", "--run", run).code == 0
    assert {place: shards(run)[place] for place in before} == before
    assert same_bytes(run, fitted)
