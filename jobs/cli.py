"""The command line. Each command composes; what it does is elsewhere."""

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from typer.exceptions import TyperException

from jobs import show
from jobs.cache import default_cache
from jobs.exit_codes import ExitCode, exit_code, sentence
from jobs.progress import Lines, shown
from jobs.text import visible
from schemas.events import Listener

#: What typer returns for a command that a KeyboardInterrupt ended.
_TYPER_INTERRUPTED = 130

#: What typer returns when a command ends in `KeyboardInterrupt`.
_INTERRUPTED = 130

app = typer.Typer(
    help="Fit steers for generative models by activation transport, and apply them.",
    epilog="With --debug, an error shows where in the code it came from.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Spec = Annotated[Path, typer.Argument(help="The spec, a YAML file.", show_default=False)]
Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
RunOption = Annotated[Path, typer.Option("--run", help="The folder of the run; made if missing.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]


@app.command()
def plan(spec: Spec, as_json: Json = False) -> None:
    """Check everything and print what a fit would do; run nothing."""
    from jobs import fit as job  # commands import what they need, so that help is fast

    planned = job.plan(spec, default_cache())
    _print(show.as_json(show.plan_facts(planned)) if as_json else show.as_text(show.plan_page(planned)))


@app.command()
def fit(spec: Spec, run: RunOption, as_json: Json = False) -> None:
    """Fit a steer; the same command on the same folder resumes."""
    from jobs import fit as job

    with _listening(as_json) as listen:
        fitted = job.fit(spec, run, default_cache(), listen)
    _print(show.as_json(show.fit_facts(fitted, run)) if as_json else show.as_text(show.fit_page(fitted, run)))


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Say how far a run is, and what it lost so far."""
    from jobs.status import status as look

    found = look(run)
    _print(show.as_json(dataclasses.asdict(found)) if as_json else show.as_text(show.status_page(found)))


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write report.html: what was fitted, where, and at what cost."""
    from jobs.report import write_report
    from pipeline.folder import RunFolder

    path = str(write_report(RunFolder(run)))
    _print(show.as_json({"report": path}) if as_json else f"{path}\n")


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A folder, a hub id, or a GGUF file.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be given several times.", show_default=False)],
    steer: Annotated[Path | None, typer.Option(help="The folder of a steer, such as RUN/steer.")] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="0 leaves the model as it is, 1 is the whole steer; may be given several times."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a continuation.")] = 40,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="Above 1 discourages repetition.")] = 1.2,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    template: Annotated[Literal["plain", "chat"], typer.Option(help="How the prompt is wrapped.")] = "plain",
    seed: Annotated[int, typer.Option(help="Seed of what is random.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[
        Literal["match", "any"], typer.Option(help="any: apply the steer to a finetune of its model too.")
    ] = "match",
    to: Annotated[Path, typer.Option(help="Folder for images.")] = Path("images"),
    as_json: Json = False,
) -> None:
    """Generate at each strength, side by side."""
    import act
    from jobs import generate as job
    from pipeline.machine import pick_device
    from pipeline.models import Sampling

    strengths = list(dict.fromkeys(strength or ([0.0, 0.5, 1.0] if steer else [0.0])))
    job.check(prompt, strengths, steer)
    place = pick_device(device)
    loaded = act.load(steer) if steer else None
    source = job.load_model(model, dtype, place, default_cache())
    sampling = Sampling(new_tokens, repetition_penalty, temperature, template, seed)
    rows = show.generation_rows(
        list(job.generate(source, loaded, list(dict.fromkeys(prompt)), strengths, sampling, weights)), to
    )
    _print(show.as_json({"generations": rows}) if as_json else show.as_text(show.generations_page(rows)))


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # Also SIGINT: a shell script starts what it runs in the background with that signal ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments or ["--help"], prog_name="actmap", standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else ExitCode.DONE)
    except TyperException as error:
        _fail(f"{error.format_message().rstrip('.')}; see {_help_for(arguments)}", ExitCode.REFUSED)
    except (typer.Abort, KeyboardInterrupt):
        stopped = KeyboardInterrupt()
        _fail(sentence(stopped), exit_code(stopped))
    except Exception as error:  # noqa: BLE001 - the one seam where every error becomes one sentence and a code
        if debug:
            traceback.print_exc()
        _fail(sentence(error), exit_code(error))


def _help_for(arguments: list[str]) -> str:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return f"actmap {arguments[0]} --help" if arguments and arguments[0] in commands else "actmap --help"


def _fail(text: str, code: ExitCode) -> NoReturn:
    sys.stderr.write(f"actmap: {visible(' '.join(text.split()))}\n")
    sys.exit(code)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _listening(as_json: bool) -> Iterator[Listener]:
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield Lines(console)
        return
    with shown(console) as listen:
        yield listen


def _print(text: str) -> None:
    """Writes the result, before the command is done. Who reads it may stop early: ``actmap plan SPEC | head``."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
