"""A driver with its Ray, in processes of their own, with faults in all of them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.command import ROOT, Done, environment
from tests.faults.injection.armed import VARIABLE, Fault, written

INJECTION = Path(__file__).parent / "injection"


@contextmanager
def driver(
    spec: Path,
    run: Path,
    cache: Path,
    faults: Sequence[Fault] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator["subprocess.Popen[str]"]:
    """A context with ``actmap fit`` in it; at its end that and all that it started are killed."""
    armed = {VARIABLE: written(faults), "PYTHONPATH": f"{ROOT}{os.pathsep}{INJECTION}"} if faults else {}
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "fit", str(spec), "--run", str(run)],
        env=environment(cache) | armed | dict(variables),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            started = below(process)
            process.kill()
            for one in started:
                with suppress(psutil.Error):
                    one.kill()


def finish(process: "subprocess.Popen[str]", seconds: float = 240.0) -> Done:
    """Waits for a driver."""
    out, err = process.communicate(timeout=seconds)
    return Done(process.returncode, out, err)


def fit(spec: Path, run: Path, cache: Path, *faults: Fault, seconds: float = 240.0) -> Done:
    """Runs ``actmap fit`` with faults in it and in its workers, to its end."""
    with driver(spec, run, cache, faults) as process:
        return finish(process, seconds)


def below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Returns the processes below a driver; none if it has ended."""
    with suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def child(process: "subprocess.Popen[str]", name: str, seconds: float = 60.0) -> psutil.Process:
    """Waits for a process below a driver whose command has a name in it, such as ``raylet``, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for one in below(process):
            with suppress(psutil.Error):
                if name in one.name() or name in " ".join(one.cmdline()[:1]):
                    return one
        time.sleep(0.05)
    raise AssertionError(f"no {name} within {seconds} seconds")


def stopped(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Returns the processes below a driver that a signal has stopped."""
    found = []
    for one in below(process):
        with suppress(psutil.Error):
            found += [one] * (one.status() == psutil.STATUS_STOPPED)
    return found


def wait_for_receipts(process: "subprocess.Popen[str]", run: Path, count: int, seconds: float = 240.0) -> None:
    """Waits until a driver has so many units done."""
    end = time.monotonic() + seconds
    while len(list(run.glob("receipts/*/*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {count} receipts within {seconds} seconds"
        time.sleep(0.01)
