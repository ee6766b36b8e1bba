"""Claim: on a real model too, laws and maps of sketches are near those of the activations, and their proofs hold."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from act.marginal import Marginal
from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.judging import INNER, OUTER, Both, exact_lines, judge, law_holds, slope_errors
from benchmarks.runs import scratch
from jobs.demo import find_model
from jobs.fit import fit
from jobs.start import Fitted
from pipeline.frames import read_frame
from pipeline.laws import Laws
from pipeline.sketch import Frame, Grid, HistogramSketch
from schemas.plan import SIDES

#: Persona statements by 16 behaviours, 8,000 that match their behaviour and 8,000 that do not.
STATEMENTS = Path("benchmarks/statements.parquet")

#: Prompts of each side.
NUM_PROMPTS = {Effort.USUAL: 1_000, Effort.LONG: 5_000}

#: The precision that is shown beside the default one.
FINER = 6

_SPEC = """\
version: 1
name: real-laws
model: {{kind: causal-lm, path: {model}}}
source: {{path: {data}, column: statement, where: {{matches: false}}, sample: {num_prompts}, seed: 1}}
target: {{path: {data}, column: statement, where: {{matches: true}}, sample: {num_prompts}, seed: 2}}
hookpoints: layernorms
pooling: mean
transport: {{method: linear, support: observed}}
law: {{kind: sketch}}
store: {{activations: all}}
compute: {{workers: 2, threads: 1, max_tokens: 64, unit_size: 256}}
"""


@final
@dataclass(frozen=True, eq=False)
class Site:
    """One site's laws and maps beside the truth, `[neurons]` each.

    Args:
        name: Its hookpoint.
        inner: Worst error of the quantiles .01 to .99 of either side, in the unit of `Both.spread`.
        outer: The same of .001 and .999.
        slope: Relative error of Linear-AcT's slope.
        finer: The same three with a finer grid.
        halves: Worst difference of the quantiles .01 to .99 between the two halves of a side's prompts, halved.
        widths: Proven bound of the linear map over its true error.
        held: Whether each proven bound held.
    """

    name: str
    inner: torch.Tensor
    outer: torch.Tensor
    slope: torch.Tensor
    finer: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    halves: torch.Tensor
    widths: torch.Tensor
    held: dict[str, torch.Tensor]

    @property
    def group(self) -> str:
        """What kind of site it is: the last part of its name."""
        return self.name.rsplit(".", 1)[-1]


def measure(effort: Effort) -> list[Finding]:
    """Fits SmolLM2 on statements with sketches, and compares every neuron with its stored activations."""
    with scratch() as folder:
        begin = time.perf_counter()
        fitted = _fit(folder, NUM_PROMPTS[effort])
        seconds = time.perf_counter() - begin
        laws = Laws(fitted.storage, fitted.plan)
        sites = [_judged(fitted, laws, number) for number in range(len(fitted.plan.sites))]
        mended = sum(laws.misfits(number).mended for number in range(len(fitted.plan.sites)))
    size = f"2 x {NUM_PROMPTS[effort]:,} prompts, {len(sites)} sites, the fit took {seconds:.0f} s"
    return [
        _finding("quantiles .01 to .99, worst error / IQR", 0.5, sites, lambda site: site.inner, 0, size),
        _finding("quantiles .001 and .999, worst error / IQR", 1.5, sites, lambda site: site.outer, 1, size),
        _finding("slope of Linear-AcT, worst relative error", 0.1, sites, lambda site: site.slope, 2, size),
        _containment(sites, f"{mended} laws of neurons got a new frame from their activations"),
        _widths(sites),
    ]


def _fit(folder: Path, num_prompts: int) -> Fitted:
    spec = folder / "spec.yaml"
    facts = {"model": find_model().absolute(), "data": STATEMENTS.absolute(), "num_prompts": num_prompts}
    spec.write_text(_SPEC.format(**facts))
    return fit(spec, folder / "run", folder / "cache")


def _judged(fitted: Fitted, laws: Laws, number: int) -> Site:
    samples = {side: laws.samples(side, number) for side in SIDES}
    exact = {side: Marginal.from_samples(samples[side]) for side in SIDES}
    source, target = (Both(laws.marginal(side, number), exact[side]) for side in SIDES)
    columns = fitted.plan.columns[fitted.plan.sites[number].hookpoint]
    frames = {side: read_frame(fitted.storage, fitted.plan, side)[columns] for side in SIDES}
    finer = [_finer(frames[side], exact[side], samples[side]) for side in SIDES]
    found = judge(source, target)
    held = dict(found.held)
    for side, law in zip(SIDES, (source, target), strict=True):
        held |= {f"{name} of the {side}": part for name, part in law_holds(law).items()}
    scale, _ = exact_lines(exact["source"], exact["target"])
    return Site(
        name=fitted.plan.sites[number].hookpoint,
        inner=_worst_of((source, target), INNER),
        outer=_worst_of((source, target), OUTER),
        slope=found.slope,
        finer=(_worst_of(finer, INNER), _worst_of(finer, OUTER), slope_errors(finer[0], finer[1], scale)),
        halves=torch.maximum(*(_halves(samples[side]) for side in SIDES)),
        widths=found.proven["linear"] / found.true["linear"],
        held=held,
    )


def _finer(frame: Frame, exact: Marginal, samples: torch.Tensor) -> Both:
    """Returns the law of a finer grid in the frame of the run."""
    sketch = HistogramSketch.empty(frame, Grid(FINER))
    sketch.update(samples)
    return Both(sketch.marginal(), exact)


def _worst_of(sides: Sequence[Both], probs: Sequence[float]) -> torch.Tensor:
    return torch.stack([side.quantile_errors(probs) for side in sides]).amax(dim=0)


def _halves(samples: torch.Tensor) -> torch.Tensor:
    """Returns about how uncertain the quantiles .01 to .99 of a side are for themselves, as `Site.halves`."""
    # Every other prompt: the file is in order of its subjects.
    one, other = (Marginal.from_samples(samples[start::2]) for start in (0, 1))
    return Both(one, other).quantile_errors(INNER) / 2


def _finding(
    title: str, wanted: float, sites: Sequence[Site], errors: Callable[[Site], torch.Tensor], place: int, size: str
) -> Finding:
    every = 100 * torch.cat([errors(site) for site in sites])
    finer = 100 * torch.cat([site.finer[place] for site in sites])
    halves = 100 * torch.cat([site.halves for site in sites])
    missed = int((every >= wanted).sum())
    notes = (
        size,
        f"median neuron {float(every.median()):.3f} %, 99 % of neurons under {float(every.quantile(0.99)):.3f} %; "
        f"{missed} of {len(every)} neurons at {wanted:g} % or more",
        f"with p = {FINER}: worst {float(finer.max()):.3f} %, median {float(finer.median()):.3f} %, "
        f"{int((finer >= wanted).sum())} neurons at {wanted:g} % or more",
        f"half the prompts against the other half, halved, quantiles .01 to .99: median neuron "
        f"{float(halves.median()):.1f} %, least {float(halves.min()):.1f} %",
        *_groups(sites, errors),
    )
    worst = Spread.of([float(every.max())])
    return Finding(f"SmolLM2, {len(every):,} neurons: {title}", "%", worst, Wanted("under", wanted), notes)


def _groups(sites: Sequence[Site], errors: Callable[[Site], torch.Tensor]) -> Iterator[str]:
    groups: defaultdict[str, list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.group].append(site)
    for group, members in groups.items():
        every = torch.cat([errors(site) for site in members])
        ranked = sorted(members, key=lambda site: -float(errors(site).max()))[:3]
        named = ", ".join(f"{site.name} {100 * float(errors(site).max()):.3f} %" for site in ranked)
        yield f"{group}, {len(every):,} neurons: median {100 * float(every.median()):.4f} %; worst {named}"


def _containment(sites: Sequence[Site], mended: str) -> Finding:
    names = sites[0].held
    counts = {name: torch.cat([site.held[name] for site in sites]) for name in names}
    notes = [f"{name}: {int(part.sum())} of {len(part)} neurons" for name, part in counts.items()]
    for site in sites:
        notes += [f"{site.name}: {name} failed" for name, part in site.held.items() if not part.all()]
    share = 100 * float(torch.cat(list(counts.values())).double().mean())
    title = "SmolLM2: proven bounds that contained the truth"
    return Finding(title, "%", Spread.of([share]), Wanted("at least", 100.0), (mended, *notes))


def _widths(sites: Sequence[Site]) -> Finding:
    every = torch.cat([site.widths for site in sites])
    return Finding("SmolLM2: proven bound of the linear map / its true error", "x", Spread.of(every.tolist()))
