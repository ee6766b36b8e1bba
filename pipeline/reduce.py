"""Reduction: the sketches of units become one law a hookpoint while the run goes on, and say how the laws stand."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

import numpy as np
import torch

from act.marginal import Marginal
from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.sketch import Grid, HistogramSketch
from pipeline.sketch.errors import OtherFrameError, SketchWordsError
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.sketches import Words
from schemas import files, record
from schemas.plan import LAWS, SIDES, LawName, Plan, Site
from schemas.receipt import Receipt
from schemas.running import PROBS, Running, RunningSite

#: Neurons of a site that its running quantiles are taken of, evenly spaced.
WATCHED = 256

#: Seconds after which running laws are told again. They are also told when the number of units has doubled.
TELL_EVERY = 30.0


@final
class Reducer:
    """Owns hookpoints: folds the units' sketches of these, and of these alone, as receipts land.

    A plain class: only `pipeline.cluster` makes it an actor. Folding is integer addition, so neither the order of the
    units nor the number of reducers changes a bit; a unit that was folded already is left out.

    Args:
        plan: The plan.
        root: The run folder.
        owned: Places in `plan.sites` of the hookpoints that it owns.
    """

    def __init__(self, plan: Plan, root: Path, owned: Sequence[int]) -> None:
        self._plan, self._folder, self._owned = plan, RunFolder(root), tuple(owned)
        self._store = SketchStore(self._folder.sketches, plan)
        self._laws: dict[tuple[LawName, int], HistogramSketch] = {}
        self._folded: set[tuple[LawName, int, int]] = set()
        self._watch = _Watch()
        self._told_units, self._told_at = 0, time.monotonic()

    def fold(self, receipt: Receipt) -> None:
        """Adds a unit to the running laws.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        laws = [law for law in LAWS if receipt.output(law) is not None]
        for law, number in itertools.product(laws, self._owned):
            # Site by site: a read that fails half-way leaves the sites before it folded, and they are so once.
            if (law, receipt.unit, number) not in self._folded:
                part = read_unit(self._plan, self._store, law, receipt.unit, number)
                self._laws[law, number] = fold_into(self._laws.get((law, number)), part)
                self._folded.add((law, receipt.unit, number))
        if self._units >= 2 * self._told_units or time.monotonic() - self._told_at >= TELL_EVERY:
            self.tell()

    def finish(self, receipts: Iterable[Receipt]) -> None:
        """Adds the units that are still missing, and writes the laws of its hookpoints.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
            StoreError: The disk refuses.
        """
        for receipt in receipts:
            self.fold(receipt)
        for (law, number), sketch in self._laws.items():
            self._store.write_law(law, number, sketch.to_words().numpy())
        self.tell()

    def tell(self) -> None:
        """Writes how the running laws stand, for `status`."""
        names = [self._plan.sites[number].hookpoint for number in self._owned]
        sites = tuple(
            self._watch.look(name, law, watched(self._laws[law, number]))
            for number, name in zip(self._owned, names, strict=True)
            for law in LAWS
            if (law, number) in self._laws and self._laws[law, number].num_samples
        )
        running = Running(self._plan.fingerprint, self._units, sites)
        files.publish(self._folder.running / f"{self._owned[0]:05d}.json", record.dump(running))
        self._told_units, self._told_at = self._units, time.monotonic()

    @property
    def _units(self) -> int:
        return len(self._folded) // len(self._owned)


def running(folder: RunFolder, plan: Plan, receipts: Sequence[Receipt]) -> tuple[RunningSite, ...]:
    """Returns the running laws of a run, site by site: what its reducers told last, or what exact laws hold so far.

    Args:
        folder: The run.
        plan: Its plan.
        receipts: The receipts of the units that are done.
    """
    if plan.law.kind == "exact":
        return tuple(_exact(folder, plan, receipts))
    told: dict[tuple[str, LawName], RunningSite] = {}
    for path in sorted(folder.running.glob("*.json")):
        with suppress(record.RecordError):  # it serves no other purpose, and its reducer will write it again
            for site in _said(plan, record.load(Running, path.read_bytes())):
                before = told.get((site.hookpoint, site.law))
                # An earlier start may have had other reducers: what counts is who has seen most.
                if before is None or site.num_samples >= before.num_samples:
                    told[site.hookpoint, site.law] = site
    order = [(site.hookpoint, law) for site in plan.sites for law in LAWS]
    return tuple(told[key] for key in order if key in told)


def _said(plan: Plan, said: Running) -> tuple[RunningSite, ...]:
    return said.sites if said.plan == plan.fingerprint else ()


def _exact(folder: RunFolder, plan: Plan, receipts: Sequence[Receipt]) -> Iterator[RunningSite]:
    store, watch = ActivationStore(folder.activations, plan), _Watch()
    for site in plan.sites:
        columns = plan.columns[site.hookpoint]
        for side in SIDES:
            done = [one for one in receipts if one.side == side]
            samples = store.samples(side, columns, done) if done else np.empty((0, site.width), np.float32)
            if len(samples):
                every = slice(0, None, max(1, site.width // WATCHED))
                yield watch.look(site.hookpoint, side, Marginal.from_samples(torch.from_numpy(samples[:, every])))


def read_unit(plan: Plan, store: SketchStore, law: LawName, unit: int, site: int) -> HistogramSketch:
    """Returns a unit's sketch of one site for a law.

    Raises:
        DamagedRunError: A chunk's checksum does not match.
    """
    words = store.read(law, unit, plan.columns[plan.sites[site].hookpoint])
    return as_sketch(plan, law, words, store.shard(law, unit), store.redo(law, unit))


def as_sketch(plan: Plan, law: LawName, words: Words, path: Path, remedy: str) -> HistogramSketch:
    """Returns the sketch that stored words are.

    Raises:
        DamagedRunError: They are none.
    """
    try:
        return HistogramSketch.from_words(torch.from_numpy(words), Grid(plan.precision(law)))
    except SketchWordsError as exc:
        raise DamagedRunError(str(path), str(exc), remedy) from exc


def fold_into(running: HistogramSketch | None, part: HistogramSketch) -> HistogramSketch:
    """Returns a running law with a unit added, in place; the unit itself where there is no law yet.

    Raises:
        DamagedRunError: The unit was counted in another frame.
    """
    if running is None:
        return part
    try:
        running.fold(part)
    except OtherFrameError as exc:
        raise DamagedRunError("a sketch", str(exc)) from exc
    return running


def shares(sites: Sequence[Site], num_reducers: int) -> list[list[int]]:
    """Returns which sites each reducer owns: neighbours, of about as many neurons together; none owns nothing."""
    total = sum(site.width for site in sites)
    owned: list[list[int]] = [[] for _ in range(num_reducers)]
    before = 0
    for number, site in enumerate(sites):
        owned[min(num_reducers - 1, (before + site.width // 2) * num_reducers // total)].append(number)
        before += site.width
    return [share for share in owned if share]


def num_reducers(plan: Plan) -> int:
    """Returns how many reducers a run has: one in this process, or what the spec says and the sites can share."""
    compute = plan.spec["compute"]
    return min(compute["reducers"], len(plan.sites)) if compute["workers"] else 1


def watched(sketch: HistogramSketch) -> Marginal:
    """Returns the law of the neurons that running quantiles are taken of."""
    step = max(1, sketch.num_neurons // WATCHED)
    return sketch.neurons(slice(0, None, step)).marginal()


@final
class _Watch:
    """Remembers what was told last, so that drift can be."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, LawName], tuple[RunningSite, torch.Tensor]] = {}

    def look(self, hookpoint: str, law: LawName, marginal: Marginal) -> RunningSite:
        """Returns a site's law as it is told; as it was told last, if no samples have come."""
        before = self._told.get((hookpoint, law))
        if before is not None and before[0].num_samples == marginal.num_samples:
            return before[0]
        now = marginal.quantile(torch.tensor(PROBS, dtype=torch.float64))
        told = RunningSite(
            hookpoint=hookpoint,
            law=law,
            num_samples=marginal.num_samples,
            quantiles=tuple(now.median(dim=1).values.tolist()),
            drift=None if before is None else _drift(before[1], now),
        )
        self._told[hookpoint, law] = told, now
        return told


def _drift(before: torch.Tensor, now: torch.Tensor) -> float:
    spread = now[PROBS.index(0.75)] - now[PROBS.index(0.25)]
    moved = (now - before).abs().amax(dim=0)[spread > 0] / spread[spread > 0]
    return float(moved.median()) if len(moved) else 0.0
