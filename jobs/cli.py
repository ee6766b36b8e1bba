"""The command line. Each command composes; what it does is elsewhere."""

import dataclasses
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import click
import typer
from rich.console import Console
from rich.table import Table

from jobs import show
from jobs.cache import default_cache
from jobs.exit_codes import ExitCode, exit_code, sentence
from jobs.progress import shown
from schemas.events import Listener, ignore

app = typer.Typer(
    name="actmap",
    help="Fit steers for generative models by activation transport, and apply them.",
    no_args_is_help=True,
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
    from jobs import fit as job  # noqa: PLC0415 - commands import what they need, so that help is fast

    planned = job.plan(spec, default_cache())
    _out(as_json, show.plan_facts(planned), show.plan_page(planned))


@app.command()
def fit(spec: Spec, run: RunOption, as_json: Json = False) -> None:
    """Fit a steer; the same command on the same folder resumes."""
    from jobs import fit as job  # noqa: PLC0415

    with _listening(as_json) as listen:
        fitted = job.fit(spec, run, default_cache(), listen)
    _out(as_json, show.fit_facts(fitted, run), show.fit_page(fitted, run))


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Say how far a run is, and what it lost so far."""
    from jobs.status import status as look  # noqa: PLC0415

    found = look(run)
    _out(as_json, dataclasses.asdict(found), show.status_page(found))


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write the run's report.html: what was fitted, where, and what it cost."""
    from jobs.report import write_report  # noqa: PLC0415
    from pipeline.folder import RunFolder  # noqa: PLC0415

    path = write_report(RunFolder(run))
    _out(as_json, {"report": str(path)}, str(path))


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A folder, a hub id, or a GGUF file.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be given several times.", show_default=False)],
    steer: Annotated[Path | None, typer.Option(help="The folder of a steer, such as RUN/steer.")] = None,
    strength: Annotated[list[float] | None, typer.Option(help="0 to leave the model as it is, 1 for the whole steer.")] = None,
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
    import act  # noqa: PLC0415
    from jobs import generate as job  # noqa: PLC0415
    from pipeline.machine import pick_device  # noqa: PLC0415
    from pipeline.models import Sampling  # noqa: PLC0415

    loaded = act.load(steer) if steer else None
    strengths = strength or ([0.0, 0.5, 1.0] if loaded else [0.0])
    sampling = Sampling(new_tokens, repetition_penalty, temperature, template, seed)
    source = job.load_model(model, dtype, pick_device(device), default_cache())
    made = list(job.generate(source, loaded, prompt, strengths, sampling, weights))
    rows = [{"prompt": one.prompt, "strength": one.strength, "output": show.output(one, to)} for one in made]
    _out(as_json, {"generations": rows}, show.generations_page(rows))


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.DONE)
    except click.ClickException as error:
        _fail(error.format_message(), ExitCode.REFUSED)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail(sentence(KeyboardInterrupt()), ExitCode.STOPPED)
    except Exception as error:  # noqa: BLE001 - the one seam where every error becomes one sentence and a code
        if debug:
            traceback.print_exc()
        _fail(sentence(error), exit_code(error))


def _fail(text: str, code: ExitCode) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"actmap: {' '.join(text.split())}", markup=False, highlight=False)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _listening(as_json: bool) -> Iterator[Listener]:
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield show.lines(console)
        return
    with shown(console) as listen:
        yield listen


def _out(as_json: bool, facts: dict[str, Any], page: Any) -> None:  # noqa: ANN401
    if as_json:
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
    else:
        Console().print(page, markup=False, highlight=False)


if __name__ == "__main__":
    main()
