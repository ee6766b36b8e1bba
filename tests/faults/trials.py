"""Trials: the command line with faults in it, a process each, forked from one that has imported everything.

Whatever a trial does to its process, its files and its memory is gone when it ends; only the run folder stays.
"""

import ctypes
import dataclasses
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, final

from tests.command import ROOT, Done, environment
from tests.faults.injection.armed import Fault, arm, written
from tests.faults.journal import Journal


@final
@dataclass(frozen=True)
class Settings:
    """How a trial runs besides its faults.

    Args:
        warm: The spec's plan and model are those that the parent made: a trial then costs its units and its files.
        largest_file: Bytes that a file may have, as the kernel enforces it; None for no limit.
        namespace: A process whose mounts it sees; None for those of all.
        journal: File into which it writes all that it did to files.
        seconds: After so many it is killed, and the test fails.
    """

    warm: bool = False
    largest_file: int | None = None
    namespace: int | None = None
    journal: str | None = None
    seconds: float = 60.0


PLAIN = Settings()


@final
class Trial:
    """A command that runs."""

    def __init__(self, trials: "Trials", pid: int, streams: list[Path], settings: Settings) -> None:
        self._trials, self.pid, self._streams, self._settings = trials, pid, streams, settings

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def end(self) -> Done:
        """Waits for it. A code below 0 is a signal."""
        code = self._trials.ask(wait=self.pid, seconds=self._settings.seconds)
        out, err = (stream.read_text("utf-8") for stream in self._streams)
        for stream in self._streams:
            stream.unlink()
        assert code is not None, f"after {self._settings.seconds} seconds it still ran: {err}"
        return Done(code, out, err)


@final
@dataclass(frozen=True)
class Trials:
    """Starts trials.

    Args:
        orders: Takes an order as a line of JSON.
        answers: Gives an answer to each.
        folder: For streams.
        cache: Where converted models go.
    """

    orders: IO[str]
    answers: IO[str]
    folder: Path
    cache: Path

    def start(self, arguments: Sequence[str | Path], faults: Sequence[Fault] = (), settings: Settings = PLAIN) -> Trial:
        """Starts ``actmap`` with arguments and faults."""
        streams = [Path(tempfile.mkstemp(dir=self.folder)[1]) for _ in range(2)]
        order = {
            "arguments": [str(argument) for argument in arguments],
            "streams": [str(stream) for stream in streams],
            "faults": json.loads(written(faults)),
            "settings": dataclasses.asdict(settings),
        }
        return Trial(self, self.ask(start=order), streams, settings)

    def fit(self, spec: Path, run: Path, *faults: Fault, settings: Settings = PLAIN) -> Done:
        """Runs ``actmap fit`` with faults, to its end."""
        return self.start(["fit", spec, "--run", run], faults, settings).end()

    def ask(self, **order: Any) -> Any:
        """Gives an order and returns the answer."""
        self.orders.write(json.dumps(order) + "\n")
        self.orders.flush()
        answer = self.answers.readline()
        assert answer, "the process that forks is gone"
        return json.loads(answer)


@contextmanager
def trials(folder: Path) -> Iterator[Trials]:
    """A context in which trials run."""
    cache = folder / "cache"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.trials"],
        cwd=ROOT,
        env=environment(cache),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Trials(process.stdin, process.stdout, folder, cache)
        process.stdin.close()


def _serve() -> None:
    import torch
    import zarr  # noqa: F401

    import pipeline.models.causal_lm  # noqa: F401
    from jobs import cli, fit  # noqa: F401
    from pipeline.sketch import compiled

    torch.set_num_threads(1)
    if compiled.available():
        compiled.prepare()  # which would take each trial of a sketch longer than its run does
    for line in sys.stdin:
        match json.loads(line):
            case {"start": order}:
                settings = Settings(**order["settings"])
                if settings.warm:
                    _warm_up(Path(order["arguments"][1]))
                gc.freeze()  # a collection in the child would copy every page that it looks at
                pid = os.fork()
                if pid == 0:
                    _become(order["arguments"], order["streams"], [Fault(**one) for one in order["faults"]], settings)
                print(pid, flush=True)  # noqa: T201
            case {"wait": pid, "seconds": seconds}:
                print(json.dumps(_wait(pid, seconds)), flush=True)  # noqa: T201


def _wait(pid: int, seconds: float) -> int | None:
    end, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.02, 1.3 * pause)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _warm_up(spec: Path) -> None:
    """Plans a spec and loads its model once, for all trials of it."""
    from jobs.cache import default_cache
    from pipeline.forward import Forward
    from pipeline.plan import make_plan
    from schemas.job import read_job

    if spec in _PLANNED:
        return
    planned, checkpoint = make_plan(read_job(spec), spec.parent, default_cache())
    forward = Forward(planned)
    _PLANNED[spec] = planned, checkpoint, forward.model, forward.fingerprint


_PLANNED: dict[Path, Any] = {}


def _stay_warm(spec: Path) -> None:
    """Has this process take the plan and the model that were made before."""
    from jobs.hands import Hands
    from pipeline.forward import Forward

    planned, checkpoint, model, fingerprint = _PLANNED[spec]
    setattr(Hands, "plan", lambda *_: (planned, checkpoint))  # noqa: B010
    setattr(Forward, "model", model)  # noqa: B010
    setattr(Forward, "fingerprint", fingerprint)  # noqa: B010


def _become(arguments: list[str], streams: list[str], faults: list[Fault], settings: Settings) -> NoReturn:
    code = 1
    try:
        sys.argv = ["actmap", *arguments]
        for number, path in enumerate([os.devnull, *streams]):
            file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
        code = _run(arguments, faults, settings)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # taking down all that is imported would take a second


def _run(arguments: list[str], faults: list[Fault], settings: Settings) -> int:
    from jobs.cli import main

    if settings.namespace is not None:
        _enter(settings.namespace)
    if settings.largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (settings.largest_file, settings.largest_file))
    if settings.warm:
        _stay_warm(Path(arguments[1]))
    journal = Journal(Path(arguments[3])) if settings.journal else None
    arm(faults)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        if journal is not None:
            journal.save(Path(str(settings.journal)))


def _enter(process: int) -> None:
    """Sees the mounts of another process. Python has a function for it from 3.12 on."""
    with open(f"/proc/{process}/ns/mnt") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "cannot enter the namespace")


if __name__ == "__main__":
    _serve()
