"""How results look on a terminal, and as JSON."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from schemas.events import Event, Listener, Notice, StageFinished
from schemas.plan import SIDES, Plan

if TYPE_CHECKING:
    from jobs.fit import Fitted
    from jobs.generate import Generated
    from jobs.status import Status

#: Longest list of sites that a terminal shows whole.
_MOST_SITES = 12


def size(num_bytes: float) -> str:
    """Returns a number of bytes for a person, such as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON."""
    units = list(plan.units())
    return {
        "name": plan.spec["name"],
        "fingerprint": plan.fingerprint,
        "units": {name: sum(unit.side == name for unit in units) for name in SIDES},
        "prompts": {name: plan.side(name).num_prompts for name in SIDES},
        "model": {"kind": plan.model.kind, "parameters": plan.model.num_parameters, "fingerprint": plan.model.fingerprint},
        "hookpoints": [{"name": site.hookpoint, "type": site.module_type, "width": site.width} for site in plan.sites],
        "memory": {
            "weights": plan.memory.weights,
            "forward": plan.memory.forward,
            "block": plan.memory.block,
            "worker": plan.memory.worker,
            "available": plan.memory.available,
        },
        "disk": plan.disk,
        "workers": plan.spec["compute"]["workers"],
        "threads": plan.numerics.threads,
    }


def plan_page(plan: Plan) -> Group:
    """Returns a plan for a person."""
    facts, memory = plan_facts(plan), plan.memory
    table = _pairs(
        ("plan", f"{plan.spec['name']}  {plan.fingerprint[:16]}"),
        ("model", f"{plan.model.kind}, {plan.model.num_parameters:,} parameters, {plan.numerics.dtype} on {plan.numerics.device}"),
        *(
            (name, f"{plan.side(name).num_prompts:,} prompts in {facts['units'][name]} units")
            for name in SIDES
        ),
        ("hookpoints", f"{len(plan.sites)} with {plan.width:,} neurons in all"),
        ("workers", f"{plan.spec['compute']['workers']} with {plan.numerics.threads} threads each"),
        (
            "memory",
            f"{size(memory.worker)} a worker of {size(memory.available)}: weights {size(memory.weights)}, "
            f"forward {size(memory.forward)}, a unit's activations twice {size(memory.block)}",
        ),
        ("disk", f"{size(plan.disk)} of activations"),
    )
    return Group(table, Text(), _sites(plan))


def fit_facts(fitted: "Fitted", run: Path) -> dict[str, Any]:
    """Returns a finished fit as JSON."""
    card = fitted.steer.card
    return {
        "steer": str(run / "steer"),
        "run": str(run),
        "fingerprint": fitted.plan.fingerprint,
        "tensors": card.tensors,
        "sites": len(card.sites),
        "prompts": fitted.plan.num_prompts,
        "quarantined": card.source.num_quarantined + card.target.num_quarantined,
        "truncated": card.source.num_truncated + card.target.num_truncated,
        "seconds": dict(fitted.timings.stages),
    }


def fit_page(fitted: "Fitted", run: Path) -> Table:
    """Returns a finished fit for a person."""
    facts = fit_facts(fitted, run)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in facts["seconds"].items())
    return _pairs(
        ("steer", facts["steer"]),
        ("maps", f"{facts['sites']} sites, {fitted.plan.width:,} neurons"),
        ("prompts", f"{facts['prompts']:,}, {facts['truncated']:,} cut to max_tokens, {facts['quarantined']:,} left out"),
        ("time", stages),
        ("next", f"actmap report {run}"),
    )


def status_page(status: "Status") -> Table:
    """Returns the state of a run for a person."""
    rate = status.prompts_done / status.worker_seconds if status.worker_seconds else 0.0
    return _pairs(
        ("run", f"{status.name}: {status.state}"),
        ("units", f"{status.units_done} of {status.units}"),
        ("prompts", f"{status.prompts_done:,} of {status.prompts:,}, {rate:.1f} prompts/s a worker, {status.tokens:,} tokens"),
        ("losses", f"{status.truncated:,} cut to max_tokens, {status.quarantined:,} left out"),
        ("steer", status.steer or "not yet"),
    )


def output(made: "Generated", folder: Path) -> str:
    """Returns a continuation, or the path of an image, which this saves as a PNG file."""
    if isinstance(made.output, str):
        return made.output
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in made.prompt)[:40] or "prompt"
    path = folder / f"{name}-{made.strength:g}.png"
    made.output.save(path)
    return str(path)


def generations_page(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns generations for a person: a row a prompt, a column a strength."""
    strengths = list(dict.fromkeys(row["strength"] for row in rows))
    table = Table(show_lines=True)
    table.add_column("prompt", ratio=1)
    for strength in strengths:
        table.add_column(f"strength {strength:g}", ratio=2)
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        texts = [row["output"] for row in rows if row["prompt"] == prompt]
        table.add_row(Text(prompt), *(Text(text.strip()) for text in texts))
    return table


def lines(console: Console) -> Listener:
    """Returns a listener that prints a line when a stage ends: for logs, where a bar would be noise."""
    begin = time.monotonic()

    def listen(event: Event) -> None:
        if isinstance(event, StageFinished):
            console.print(f"[{time.monotonic() - begin:8.1f} s] {event.stage} took {event.seconds:.1f} s", markup=False, highlight=False)
        elif isinstance(event, Notice):
            console.print(f"note: {event.sentence}", markup=False, highlight=False)

    return listen


def _sites(plan: Plan) -> Table:
    table = Table("hookpoint", "module", "width", box=None, pad_edge=False)
    shown = plan.sites if len(plan.sites) <= _MOST_SITES else plan.sites[: _MOST_SITES - 1]
    for site in shown:
        table.add_row(Text(site.hookpoint), site.module_type, f"{site.width:,}")
    if len(shown) < len(plan.sites):
        table.add_row(f"… {len(plan.sites) - len(shown)} more, all with --json", "", "")
    return table


def _pairs(*rows: tuple[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    return table
