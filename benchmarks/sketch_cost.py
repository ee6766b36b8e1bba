"""Claim: a law takes under 4 KiB in memory and some hundred bytes on disk, and merging is hardly more than adding."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import torch

from benchmarks.distributions import PILOT, columns, sketched
from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate
from benchmarks.runs import Setting, lay_out, scratch, tiny_model
from pipeline.folds import Folds
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.storage import LocalStorage
from pipeline.store import SketchStore
from schemas.fold import UnitSet
from schemas.plan import Law, Plan, SideFacts, Site

#: Neurons of one and of all 61 layernorms of SmolLM2, and samples of a unit.
WIDTH, NUM_NEURONS, UNIT_SIZE = 576, 61 * 576, 512

#: Unit sketches that are folded over and over, and how often in all.
NUM_UNITS = 4
FOLDS = {Effort.USUAL: 40, Effort.LONG: 1000}

#: What a law on disk is measured of.
STORED_SAMPLES = 1_000_000
STORED_NEURONS = {Effort.USUAL: 128, Effort.LONG: 1024}
STORED = ("Gaussian", "log-normal", "Student t3")

#: How it is counted.
LAW = Law("sketch", Grid().precision)

#: Samples that are drawn at once.
_DRAWN = 50_000

#: In how many of a hundred neurons the units' scale is behind the running law's.
LAGGING = (0, 10)


def measure(effort: Effort) -> list[Finding]:
    """Weighs a sketch in memory and on disk, and times folds against additions of as many integers."""
    return [_live(), *_stored(effort), *_merging(effort)]


def _live() -> Finding:
    """The bytes of all tensors of a sketch, its frame among them."""
    sketch = HistogramSketch.empty(Frame.from_pilot(torch.zeros(1, 1024)), Grid())
    parts = {**sketch.frame.to_tensors(), **{f"its {name}": part for name, part in sketch.arrays.tensors().items()}}
    each = sum(part.nbytes for part in parts.values()) / sketch.num_neurons
    notes = (f"of these the counts are {sketch.arrays.counts.nbytes / sketch.num_neurons:.0f}",)
    return Finding("live bytes of a sketch, a neuron", "B", Spread.of([each]), Wanted("under", 4096.0), notes)


def _stored(effort: Effort) -> Iterator[Finding]:
    num_neurons = STORED_NEURONS[effort]
    with scratch() as folder:
        small, _ = lay_out(Setting(8, 8, model=tiny_model(folder / "model")), folder)
        plan = dataclasses.replace(
            small,
            law={"source": LAW, "target": LAW},
            sites=tuple(Site(shape, "Norm", num_neurons) for shape in STORED),
            source=SideFacts(UNIT_SIZE, "none"),
        )
        for number, shape in enumerate(STORED):
            law, unit = _bytes_on_disk(plan, number, folder / f"store-{number}")
            wanted = Wanted("under", 350.0) if shape == "Gaussian" else None
            notes = (
                f"{num_neurons} neurons of {STORED_SAMPLES:,} samples each; the file's size, checksums included",
                f"the shard of a unit of {UNIT_SIZE} samples: {unit:.0f} bytes a neuron",
            )
            yield Finding(f"bytes on disk of a law of 1M samples, {shape}", "B", Spread.of([law]), wanted, notes)


def _bytes_on_disk(plan: Plan, number: int, path: Path) -> tuple[float, float]:
    """Returns the bytes a neuron of a finished law, and of a unit, of columns of one shape."""
    site = plan.sites[number]
    plan = dataclasses.replace(plan, sites=(site,))
    storage = LocalStorage(path)
    whole: HistogramSketch | None = None
    for seed in range(STORED_SAMPLES // _DRAWN):
        samples = columns(site.hookpoint, _DRAWN, site.width, seed)
        whole = whole or HistogramSketch.empty(Frame.from_pilot(samples[:PILOT]), Grid(LAW.precision))
        whole.update(samples)
    assert whole is not None
    unit = sketched(samples[:UNIT_SIZE], LAW.precision)
    fold = Folds(storage, plan).write("source", 0, UnitSet(1, 0), [whole], whole.num_samples)
    shard = SketchStore(storage, plan).encode("source", 0, unit.to_words().numpy())
    return fold.output.size / site.width, len(shard) / site.width


def _merging(effort: Effort) -> Iterator[Finding]:
    usual = torch.get_num_threads()
    try:
        for lagging in LAGGING:
            torch.set_num_threads(1)
            units = Units.draw(lagging)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                yield _merge_finding(units, FOLDS[effort], lagging, threads)
    finally:
        torch.set_num_threads(usual)


def _merge_finding(units: "Units", folds: int, lagging: int, threads: int) -> Finding:
    units.fold(0), units.add(0)
    pairs = list(alternate(folds, units.fold, units.add))
    fold, add = (Spread.of([1000 * pair[side] for pair in pairs]) for side in (0, 1))
    apart = [1000 * units.fold_apart(number) for number in range(4)]
    scales = f"{lagging} % of the neurons behind in scale" if lagging else "all scales equal"
    notes = (
        f"{folds} units of {UNIT_SIZE} samples, of {len(units.units)} that differ",
        f"a fold takes {fold.median:.1f} ms ({fold.low:.1f} to {fold.high:.1f}), an addition of "
        f"{units.total.nbytes / 1e6:.0f} MB of int32 {add.median:.1f} ms ({add.low:.1f} to {add.high:.1f})",
        f"{fold.median / NUM_NEURONS * 1e3:.2f} microseconds a neuron",
        f"site by site, as a reducer folds: {min(apart):.1f} ms",
    )
    thread = "1 thread" if threads == 1 else f"{threads} threads"
    claim = f"plain addition of the counts / fold of a unit, {NUM_NEURONS:,} neurons, {scales}, {thread}"
    return Finding(claim, "x", Spread.of([one / two for two, one in pairs]), Wanted("at least", 0.30), notes)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Sketches of units of one frame, and a law that they are folded into.

    Args:
        law: The running law.
        total: Counts of the same shape, which the units' counts are added to.
        units: The units.
    """

    law: HistogramSketch
    total: torch.Tensor
    units: Sequence[HistogramSketch]

    @classmethod
    def draw(cls, lagging: int) -> "Units":
        """Returns Gaussian units whose scale is behind the law's at so many in a hundred of the neurons."""
        pilot = columns("Gaussian", PILOT, NUM_NEURONS, 0)
        law = HistogramSketch.empty(Frame.from_pilot(pilot))
        units = []
        for seed in range(1, NUM_UNITS + 1):
            unit = HistogramSketch.empty(law.frame)
            unit.update(columns("Gaussian", UNIT_SIZE, NUM_NEURONS, seed))
            units.append(unit)
        # One sample beyond the last edge, so that the scale doubles once.
        beyond = 1.5 * 2.0 ** (law.frame.exponent + law.grid.reach)
        few = NUM_NEURONS * lagging // 100
        law.update(torch.cat([beyond[:few], pilot[0, few:]])[None])
        return cls(law, torch.zeros_like(law.arrays.counts), units)

    def fold(self, number: int) -> float:
        """Folds a unit into the law; returns the seconds."""
        begin = time.perf_counter()
        self.law.fold(self.units[number % NUM_UNITS])
        return time.perf_counter() - begin

    def add(self, number: int) -> float:
        """Adds a unit's counts to as many; returns the seconds."""
        begin = time.perf_counter()
        self.total.add_(self.units[number % NUM_UNITS].arrays.counts)
        return time.perf_counter() - begin

    def fold_apart(self, number: int) -> float:
        """Folds a unit into the law a site at a time; returns the seconds."""
        begin = time.perf_counter()
        for start in range(0, NUM_NEURONS, WIDTH):
            part = slice(start, start + WIDTH)
            self.law.neurons(part).fold(self.units[number % NUM_UNITS].neurons(part))
        return time.perf_counter() - begin
