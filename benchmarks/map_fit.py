"""Claim: the maps of all layernorms of an 8B model are fitted from their sketches in ten seconds."""

import dataclasses
import time
from pathlib import Path
from typing import final

import torch

from act.transport import fit
from benchmarks.distributions import PILOT, columns
from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.runs import Setting, lay_out, scratch, tiny_model
from pipeline import machine
from pipeline.fit import over_sites
from pipeline.folds import Folds
from pipeline.sketch import Frame, Grid, HistogramSketch
from schemas.fold import UnitSet
from schemas.plan import Law, Site

#: The layernorms of Llama-3-8B and their width.
NUM_SITES, WIDTH = 65, 4096

#: Sites that differ; they are used over and over.
NUM_DISTINCT = {Effort.USUAL: 2, Effort.LONG: 6}

#: Rounds over all sites.
ROUNDS = {Effort.USUAL: 1, Effort.LONG: 5}

#: The shapes of a site's neurons and their shares in sixteenths.
SHARES = {"Gaussian": 8, "Laplace": 4, "Student t3": 3, "log-normal": 1}

#: A law's million samples are the rows drawn for a neuron and for so many of its neighbours.
ROWS, NEIGHBOURS = 20_000, 50


@final
@dataclasses.dataclass(frozen=True)
class Cost:
    """What the maps of all sites took, in seconds.

    Args:
        whole: On the wall.
        laws: From sketches to the laws of both sides, added up over the sites.
        maps: From laws to maps with bounds and support, added up.
    """

    whole: float
    laws: float
    maps: float


def measure(effort: Effort) -> list[Finding]:
    """Fits Linear-AcT at 65 sites of 4096 neurons, both sides sketches of a million samples, as a run does."""
    sites = [(_law(2 * number, 1.0), _law(2 * number + 1, 1.3)) for number in range(NUM_DISTINCT[effort])]
    _fit_site(*sites[0])  # The first also loads code.
    costs = [_fit_all(sites) for _ in range(ROUNDS[effort])]
    read = _read_all(sites[0][0])
    num = NUM_SITES * WIDTH
    wholes = [cost.whole for cost in costs]
    cells = max(int((side.arrays.counts > 0).sum(dim=1).max()) for site in sites for side in site)
    notes = (
        f"from sketches to laws: {min(cost.laws for cost in costs):.2f} s of one core, of both sides",
        f"from laws to maps: {min(cost.maps for cost in costs):.2f} s of one core",
        f"{1e6 * min(wholes) / num:.1f} microseconds a neuron; at most {cells} occupied cells",
        f"besides, reading the words of both sides from disk and checking them: {read:.1f} s",
        f"{len(sites)} sites that differ, used over and over",
    )
    claim = f"Linear-AcT with bounds and support at {NUM_SITES} sites of {WIDTH} neurons, from sketches in memory"
    return [Finding(f"{claim}, {machine.num_cores()} cores", "s", Spread.of(wholes), Wanted("under", 10.0), notes)]


def _fit_all(sites: list[tuple[HistogramSketch, HistogramSketch]]) -> Cost:
    """Fits as a run does: several sites at once, so that the parts' times add up to more than the whole."""
    begin = time.perf_counter()
    costs = list(over_sites(NUM_SITES, lambda number: _fit_site(*sites[number % len(sites)])))
    whole = time.perf_counter() - begin
    return Cost(whole, sum(cost.laws for cost in costs), sum(cost.maps for cost in costs))


def _fit_site(source: HistogramSketch, target: HistogramSketch) -> Cost:
    begin = time.perf_counter()
    laws = source.marginal(), target.marginal()
    between = time.perf_counter()
    fit("linear", *laws, support="observed")
    end = time.perf_counter()
    return Cost(end - begin, between - begin, end - between)


def _law(seed: int, scale: float) -> HistogramSketch:
    """Returns the sketch of a million samples of each neuron of a site."""
    parts = []
    for shape, share in SHARES.items():
        samples = columns(shape, ROWS, WIDTH * share // 16, seed).mul_(scale)
        # One frame for all neurons of a shape, so that counts of one can be given to another.
        pilot = samples[:PILOT, :1].expand(-1, samples.shape[1])
        rows = HistogramSketch.empty(Frame.from_pilot(pilot))
        rows.update(samples)
        words = rows.to_words()
        whole = HistogramSketch.from_words(words)
        for place in range(1, NEIGHBOURS):
            whole.fold(HistogramSketch.from_words(words.roll(place, dims=0)))
        parts.append(whole.to_words())
    # Mixed, as they are in a model: neighbours need different numbers of cells.
    mixed = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    return HistogramSketch.from_words(torch.cat(parts)[mixed])


def _read_all(law: HistogramSketch) -> float:
    """Returns the seconds that reading the laws of both sides of all sites takes, from the time that one takes."""
    with scratch() as folder:
        folds = _folds(folder)
        fold = folds.write("source", 0, UnitSet(1, 0), [law], law.num_samples)
        begin = time.perf_counter()
        folds.load([fold], range(1))
        return 2 * NUM_SITES * (time.perf_counter() - begin)


def _folds(folder: Path) -> Folds:
    small, storage = lay_out(Setting(8, 8, model=tiny_model(folder / "model")), folder)
    law, site = Law("sketch", Grid().precision), Site("norm", "Norm", WIDTH)
    return Folds(storage, dataclasses.replace(small, law={"source": law, "target": law}, sites=(site,)))
