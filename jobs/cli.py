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
Specs = Annotated[
    list[Path],
    typer.Argument(
        help="The spec, a YAML file; of several, each run goes into a folder of its name.", show_default=False
    ),
]
Run = Annotated[str, typer.Argument(help="The folder of a run, or its URL.", show_default=False)]
RunOption = Annotated[
    str, typer.Option("--run", help="The folder of the run, or a URL; made if missing.", show_default=False)
]
Wait = Annotated[
    float, typer.Option(min=0.0, help="Seconds to wait for another process that works on the run.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]


@app.command()
def plan(spec: Spec, as_json: Json = False) -> None:
    """Check everything and print what a fit would do; run nothing."""
    from jobs import fit as job  # commands import what they need, so that help is fast

    planned = job.plan(spec, default_cache())
    _print(show.as_json(show.plan_facts(planned)) if as_json else show.as_text(show.plan_page(planned)))


@app.command()
def fit(
    spec: Specs,
    run: RunOption,
    repair: Annotated[
        bool, typer.Option("--repair", help="Look for damage first, and compute again what has it.")
    ] = False,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Fit a steer, or several; the same command on the same folder resumes."""
    from jobs import fit as job

    damage: job.OnDamage = "repair" if repair else "refuse"
    with _listening(as_json) as listen:
        if len(spec) == 1:
            done = [job.fit(spec[0], run, default_cache(), listen, wait=wait, damage=damage)]
        else:
            done = list(job.fit_all(spec, run, default_cache(), listen, wait=wait, damage=damage))
    facts = [show.fit_facts(fitted) for fitted in done]
    if as_json:
        _print(show.as_json(facts[0] if len(facts) == 1 else {"runs": facts}))
    else:
        _print("\n".join(show.as_text(show.fit_page(fitted)) for fitted in done))


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Say how far a run is, and what it lost so far."""
    from jobs.status import status as look

    found = look(run)
    _print(show.as_json(dataclasses.asdict(found)) if as_json else show.as_text(show.status_page(found)))


@app.command()
def verify(
    path: Annotated[
        str, typer.Argument(help="The folder of a run, or its URL, or the folder of a steer.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Check every byte of a run or a steer, and that each prompt counts exactly once."""
    from jobs.verify import verify as look

    found = look(path)
    _print(show.as_json(show.verify_facts(found)) if as_json else show.as_text(show.verify_page(found)))
    found.check()


@app.command()
def replay(
    steer: Annotated[Path, typer.Argument(help="The folder of a steer, such as RUN/steer.", show_default=False)],
    base: Annotated[Path, typer.Option(help="Where relative paths of its spec start.")] = Path(),
    run: Annotated[str | None, typer.Option(help="A folder for the run; one that is deleted if not given.")] = None,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Compute a steer again from its card, and compare the two bit for bit."""
    from jobs.replay import replay as job

    with _listening(as_json) as listen:
        done = job(steer, base, run, default_cache(), listen, wait)
    _print(show.as_json(dataclasses.asdict(done)) if as_json else show.as_text(show.replay_page(done)))


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write report.html: what was fitted, where, and at what cost."""
    from jobs.report import write_report

    path = write_report(run)
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
