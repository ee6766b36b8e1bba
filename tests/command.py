"""The command line as a user meets it: a process with its own exit code and streams.

Importing torch and transformers takes seconds, so one process imports them and forks for every command.
"""

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, final

ROOT = Path(__file__).parents[1]

#: What a stage says that took more than a second.
_STAGE = re.compile(r"\[ *[0-9.]+ s\] \w+ took [0-9.]+ s")


@final
@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, which is one JSON object."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    @property
    def refusal(self) -> str:
        """The one sentence that standard error holds and nothing else, and standard output nothing at all.

        On a slow machine the stages before it say that they took seconds.
        """
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not _STAGE.fullmatch(line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("actmap: ")
        return lines[0].removeprefix("actmap: ")


@final
@dataclass(frozen=True)
class Commands:
    """Runs commands, one at a time.

    Args:
        orders: Takes a command as a line of JSON.
        answers: Gives the exit code of each.
        cache: Where converted models go.
    """

    orders: IO[str]
    answers: IO[str]
    cache: Path

    def __call__(self, *arguments: str | Path, cwd: Path = ROOT) -> Done:
        """Runs ``actmap`` with arguments in a folder."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [f"{folder}/out", f"{folder}/err"]
            order = {"arguments": [str(argument) for argument in arguments], "cwd": str(cwd), "streams": streams}
            self.orders.write(json.dumps(order) + "\n")
            self.orders.flush()
            code = int(self.answers.readline())
            return Done(code, *(Path(stream).read_text("utf-8") for stream in streams))


@contextmanager
def commands(cache: Path) -> Iterator[Commands]:
    """A context in which commands run."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.command"],
        cwd=ROOT,
        env=environment(cache),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Commands(process.stdin, process.stdout, cache)
        process.stdin.close()


def environment(cache: Path) -> dict[str, str]:
    """The environment of a command: one thread, no hub, a cache of its own."""
    return os.environ | {
        "ACTMAP_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }


def _serve() -> None:
    """Forks for each order; the child goes on as the command. What commands import late is here beforehand."""
    import pipeline.models.causal_lm  # noqa: F401
    from jobs import fit, generate, replay, report, status, verify  # noqa: F401
    from jobs.cli import main
    from pipeline.sketch import compiled

    if compiled.available():
        compiled.prepare()
    gc.freeze()  # a collection in the child would copy every page that it looks at
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
            _end(main)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)  # noqa: T201


def _end(command: Callable[[], NoReturn]) -> NoReturn:
    """Runs a command and leaves with its code at once: taking down all that is imported would take a second."""
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(arguments: list[str], cwd: str, streams: list[str]) -> None:
    sys.argv = ["actmap", *arguments]
    os.chdir(cwd)
    for number, path in enumerate([os.devnull, *streams]):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)


if __name__ == "__main__":
    _serve()
