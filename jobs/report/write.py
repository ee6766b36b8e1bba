"""Writing the report: facts and figures into the page's template."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from jobs.report import figures
from jobs.report.bounds import bound, error_bounds
from jobs.report.facts import Facts, Generation, gather
from jobs.report.grid import arrange
from jobs.report.text import count, decimal, duration, power
from jobs.text import size, visible
from pipeline.folder import REPORT, REPORT_CHECKSUM
from pipeline.layout import checksum_line
from pipeline.storage import storage_at
from schemas.job import Job

#: Characters of the spec that are shown.
MOST_SPEC = 20_000

_PARTS = re.compile(r"[^._]*[._]?")

#: Text that needs no quotes in YAML.
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def write_report(run: str | Path, generations: Sequence[Generation] = ()) -> str:
    """Writes the report of a finished run, in place of an earlier one, and returns where it is.

    Args:
        run: The run folder, or its URL.
        generations: Texts that the model wrote under the steer, to be shown side by side.

    Raises:
        RunNotFoundError: The folder holds no run.
        SteerNotFoundError: The run has no steer yet.
        StorageError: Parts of the run are damaged, or the report cannot be written.
    """
    storage = storage_at(run)
    page = render(gather(storage, generations)).encode()
    storage.write(REPORT_CHECKSUM, checksum_line(page, REPORT))
    storage.write(REPORT, page)
    return storage.place(REPORT)


def render(facts: Facts) -> str:
    """Returns the page. All text in it is escaped, and what could hide in text is spelled out."""
    package = resources.files("jobs.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters |= {
        "bound": bound,
        "breakable": _breakable,
        "bytesize": size,
        "count": count,
        "decimal": decimal,
        "duration": duration,
        "power": power,
    }
    card = facts.steer.card
    grid = arrange(card.sites)
    return environment.from_string((package / "page.html.j2").read_text("utf-8")).render(
        facts=facts,
        card=card,
        plan=facts.plan,
        cost=facts.cost,
        grid=grid,
        style=Markup((package / "style.css").read_text("utf-8")),
        heat_map=figures.heat_map(grid),
        misfits=any(site.misfit for site in card.sites),
        error_bounds=error_bounds(card.sites),
        neurons=[(neuron, figures.neuron_laws(neuron)) for neuron in facts.neurons],
        stage_bars=figures.stage_bars(facts.cost.stages) if facts.cost.stages else "",
        spec=_spec(facts.plan.spec)[:MOST_SPEC],
    )


def _visible(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """Returns a dotted name that may go on in a new line after each of its parts."""
    return Markup("<wbr>").join(part for part in _PARTS.findall(visible(name)) if part)


def _spec(spec: Mapping[str, object]) -> str:
    """Returns the lines of a spec, its sections in the order in which a job is read."""
    order = [*(key for key in Job.model_fields if key in spec), *(key for key in spec if key not in Job.model_fields)]
    return "\n".join(_yaml({key: spec[key] for key in order}))


def _yaml(tree: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """Yields the lines of nested values as a person writes them in YAML, every text that could mislead in quotes."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(key)}:"
            yield from _yaml(value, f"{indent}  ")
        elif isinstance(value, list | tuple):
            yield f"{indent}{_scalar(key)}: [{', '.join(map(_scalar, value))}]"
        elif value is not None:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}"


def _scalar(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
