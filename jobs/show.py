"""How results look on a terminal, and as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.text import size, visible
from schemas.plan import EXACT_SAMPLES, SIDES, Memory, Plan, SideName
from schemas.running import PROBS, RunningSite

if TYPE_CHECKING:
    from jobs.generate import Generated
    from jobs.replay import Replayed
    from jobs.start import Fitted
    from jobs.status import Status
    from jobs.verify import Verified

#: Longest list of sites that a terminal shows whole.
_MOST_SITES = 12

#: Most prompts that a terminal shows of those left out.
_MOST_LOSSES = 20


def as_json(facts: Mapping[str, Any]) -> str:
    """Returns facts as one line of JSON, in ASCII: other alphabets have characters that some readers end a line at."""
    return json.dumps(facts, allow_nan=False) + "\n"


def as_text(page: RenderableType) -> str:
    """Returns a page as standard output shows it: in colour, and as wide, where that is a terminal."""
    console = Console()
    with console.capture() as capture:
        console.print(page, markup=False, highlight=False, crop=False)
    return capture.get()


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON."""
    return {
        "name": plan.spec["name"],
        "fingerprint": plan.fingerprint,
        "units": {name: plan.num_units(name) for name in SIDES},
        "prompts": {name: plan.side(name).num_prompts for name in SIDES},
        "model": {
            "kind": plan.model.kind,
            "parameters": plan.model.num_parameters,
            "fingerprint": plan.model.fingerprint,
        },
        "hookpoints": [{"name": site.hookpoint, "type": site.module_type, "width": site.width} for site in plan.sites],
        "memory": {
            "weights": plan.memory.weights,
            "forward": plan.memory.forward,
            "block": plan.memory.block,
            "sketch": plan.memory.sketch,
            "reducer": plan.memory.reducer,
            "held": plan.memory.held,
            "waiting": plan.memory.waiting,
            "worker": plan.memory.worker,
            "available": plan.memory.available,
        },
        "disk": plan.disk,
        "sketch_disk": plan.sketch_disk,
        "law": {
            name: {"kind": plan.law[name].kind, "precision": plan.law[name].precision, "rule": law_rule(plan, name)}
            for name in SIDES
        },
        "workers": plan.spec["compute"]["workers"],
        "threads": plan.numerics.threads,
    }


def plan_page(plan: Plan) -> Group:
    """Returns a plan for a person."""
    facts, memory, model = plan_facts(plan), plan.memory, plan.model
    table = _pairs(
        ("name", str(plan.spec["name"])),
        ("fingerprint", plan.fingerprint),
        (
            "model",
            f"{model.kind}, {model.num_parameters:,} parameters, {plan.numerics.dtype} on {plan.numerics.device}",
        ),
        *((name, f"{plan.side(name).num_prompts:,} prompts in {facts['units'][name]} units") for name in SIDES),
        ("hookpoints", f"{len(plan.sites)} with {plan.width:,} neurons in all"),
        ("workers", f"{plan.spec['compute']['workers']} with {plan.numerics.threads} threads each"),
        (
            "memory",
            f"{size(memory.worker)} a worker of {size(memory.available)}: weights {size(memory.weights)}, "
            f"forward {size(memory.forward)}, a unit's activations twice {size(memory.block)}, "
            f"its sketches {size(memory.sketch)}",
        ),
        *([("lockstep", _lockstep(memory))] if plan.sequential else []),
        *([("reducer", f"{size(memory.reducer)} each, beside the workers")] if memory.reducer else []),
        *((f"{name} law", law_rule(plan, name)) for name in SIDES),
        ("disk", f"{size(plan.disk)} of activations, about {size(plan.sketch_disk)} of sketches"),
    )
    return Group(table, Text(), _sites(plan))


def _lockstep(memory: Memory) -> str:
    """Says what the waiting forwards of a sequential fit take."""
    where = (
        f"{size(max(0, memory.room))} of it in memory, the rest in a temporary file" if memory.spills else "in memory"
    )
    return f"{size(memory.held)} of samples a worker, and up to {size(memory.waiting)} of waiting forwards, {where}"


def law_rule(plan: Plan, side: SideName) -> str:
    """Returns how the samples of a side become its law, and why, in words."""
    law, most = plan.law[side], plan.side(side).num_prompts * plan.rows_per_prompt
    asked = plan.spec["law"]["kind"]
    if asked != "auto":
        return f"{law.kind}, as the spec says; {most:,} samples at most"
    if law.kind == "sketch":
        return (
            f"sketches with {2**law.precision} buckets an octave, for {most:,} samples are more than {EXACT_SAMPLES:,}"
        )
    if most <= EXACT_SAMPLES:
        return f"exact, for {most:,} samples are at most {EXACT_SAMPLES:,}"
    return f"exact, for {plan.spec['transport']['method']} needs the {most:,} samples themselves"


def fit_facts(fitted: "Fitted") -> dict[str, Any]:
    """Returns a finished fit as JSON."""
    card = fitted.steer.card
    return {
        "steer": fitted.place,
        "run": fitted.storage.uri,
        "fingerprint": fitted.plan.fingerprint,
        "tensors": card.tensors,
        "sites": len(card.sites),
        "prompts": fitted.plan.num_prompts,
        "quarantined": card.source.num_quarantined + card.target.num_quarantined,
        "truncated": card.source.num_truncated + card.target.num_truncated,
        "seconds": fitted.timings.in_order,
    }


def fit_page(fitted: "Fitted") -> Group:
    """Returns a finished fit for a person."""
    facts = fit_facts(fitted)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in facts["seconds"].items())
    return _pairs(
        ("steer", facts["steer"]),
        ("maps", f"{facts['sites']} sites, {fitted.plan.width:,} neurons"),
        (
            "prompts",
            f"{facts['prompts']:,}, {facts['truncated']:,} cut to max_tokens, {facts['quarantined']:,} left out",
        ),
        ("time", stages),
        ("next", f"actmap report {fitted.storage.uri}"),
    )


def status_page(status: "Status") -> Group:
    """Returns the state of a run for a person."""
    rate = status.prompts_done / status.worker_seconds if status.worker_seconds else 0.0
    pairs = _pairs(
        ("run", f"{status.name}: {status.state}"),
        ("units", f"{status.units_done} of {status.units}"),
        *([] if status.sites_fitted is None else [("sites", f"{status.sites_fitted} of {status.sites} fitted")]),
        (
            "prompts",
            f"{status.prompts_done:,} of {status.prompts:,}, {rate:.1f} prompts/s a worker, {status.tokens:,} tokens",
        ),
        ("losses", f"{status.truncated:,} cut to max_tokens, {status.quarantined:,} left out"),
        *_losses(status.losses),
        ("steer", status.steer or "not yet"),
    )
    return Group(pairs, Text(), _running(status.running)) if status.running else pairs


def _losses(losses: Sequence[str]) -> list[tuple[str, str]]:
    shown = losses if len(losses) <= _MOST_LOSSES else losses[: _MOST_LOSSES - 1]
    more = len(losses) - len(shown)
    return [*(("", loss) for loss in shown), *([("", f"… {more} more, all with --json")] if more else [])]


def verify_facts(found: "Verified") -> dict[str, Any]:
    """Returns what was verified as JSON, with everything that is damaged."""
    seen = found.seen
    return {
        found.what: found.place,
        "files": seen.files,
        "bytes": seen.num_bytes,
        "units": {"done": seen.units, "of": found.units},
        "prompts": {
            "counted": seen.counted,
            "quarantined": seen.quarantined,
            "removed": seen.removed,
            "of": found.prompts,
        },
        "temporaries": seen.temporaries,
        "leftovers": seen.leftovers,
        "unknown": list(found.unknown),
        "damages": [
            {
                "file": one.key,
                "kind": one.kind,
                "unit": None if one.unit is None else {"side": one.unit.side, "index": one.unit.index},
                "problem": one.problem,
            }
            for one in found.damages
        ],
    }


def verify_page(found: "Verified") -> Group:
    """Returns what was verified for a person."""
    seen = found.seen
    rows = [(found.what, found.place), ("checked", f"{seen.files:,} files, {size(seen.num_bytes)}")]
    if found.units:
        undone = "" if seen.units == found.units else "; the run is not finished, or damaged"
        rows += [
            ("units", f"{seen.units:,} of {found.units:,} done{undone}"),
            (
                "prompts",
                f"{seen.counted:,} counted, {seen.quarantined:,} quarantined, {seen.removed:,} removed, each once, "
                f"of {found.prompts:,}",
            ),
        ]
    if seen.temporaries or seen.leftovers:
        rows.append(("leftovers", f"{seen.temporaries:,} temporary and {seen.leftovers:,} other files, harmless"))
    if found.unknown:
        more = f" and {len(found.unknown) - 1:,} more" if len(found.unknown) > 1 else ""
        rows.append(("unknown", f"{found.unknown[0]}{more}, no part of the {found.what}"))
    if found.damages:
        first = found.damages[0]
        unit = "" if first.unit is None else f" ({first.unit})"
        rows += [("first bad", f"{first.key}{unit}: {first.problem}"), ("more", f"{len(found.damages) - 1:,}")]
    else:
        rows.append(("damaged", "nothing"))
    return _pairs(*rows)


def replay_page(done: "Replayed") -> Group:
    """Returns a replay that gave the same bits, for a person."""
    return _pairs(
        ("steer", done.steer),
        ("replay", f"same bits: {done.sites} sites from {done.prompts:,} prompts, and every line of the card"),
        ("tensors", done.tensors),
        *([("run", done.run)] if done.run is not None else []),
    )


def generation_rows(made: Iterable["Generated"], folder: Path) -> list[dict[str, Any]]:
    """Returns generations as JSON; images are saved in a folder as PNG files, and stand there with their paths."""
    return [
        {"prompt": one.prompt, "strength": one.strength, "output": _output(one, folder, number)}
        for number, one in enumerate(made)
    ]


def generations_page(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns generations for a person: a row a prompt, a column a strength."""
    strengths = list(dict.fromkeys(row["strength"] for row in rows))
    table = Table(show_lines=True)
    table.add_column("prompt", ratio=1)
    for strength in strengths:
        table.add_column(f"strength {strength:g}", ratio=2)
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        texts = [row["output"] for row in rows if row["prompt"] == prompt]
        table.add_row(*(Text(visible(text.strip())) for text in (prompt, *texts)))
    return table


def _output(made: "Generated", folder: Path, number: int) -> str:
    if isinstance(made.output, str):
        return made.output
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in made.prompt)[:40]
    path = folder / f"{number:03d}-{name}-{made.strength:g}.png"
    made.output.save(path)
    return str(path)


def _sites(plan: Plan) -> Table:
    table = Table("hookpoint", "module", "width", box=None, pad_edge=False)
    shown = plan.sites if len(plan.sites) <= _MOST_SITES else plan.sites[: _MOST_SITES - 1]
    for site in shown:
        table.add_row(Text(visible(site.hookpoint)), visible(site.module_type), f"{site.width:,}")
    if len(shown) < len(plan.sites):
        table.add_row(f"… {len(plan.sites) - len(shown)} more, all with --json", "", "")
    return table


def _running(sites: Sequence[RunningSite]) -> Text:
    """The laws so far: of each site the median over neurons of some quantiles, and how far they moved since last told.

    Text, not a table, which would cut long names to the width of the terminal.
    """
    shown = sites if len(sites) <= _MOST_SITES else sites[: _MOST_SITES - 1]
    rows = [("hookpoint", "law", "samples", *(f"{prob:.0%}" for prob in PROBS), "drift")]
    for site in shown:
        drift = "" if site.drift is None else f"{site.drift:.3f}"
        quantiles = (f"{value:.3g}" for value in site.quantiles)
        rows.append((visible(site.hookpoint), site.law, f"{site.num_samples:,}", *quantiles, drift))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(shown) < len(sites):
        lines.append(f"… {len(sites) - len(shown)} more, all with --json")
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def _pairs(*rows: tuple[str, str]) -> Group:
    """Returns lines of a name and a value, none of them broken: a value may be a path to be copied."""
    width = 2 + max(len(name) for name, _ in rows)
    lines = [Text.assemble((name.ljust(width), "bold"), visible(value)) for name, value in rows]
    return Group(Text("\n", no_wrap=True, overflow="ignore").join(lines))
