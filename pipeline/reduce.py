"""Reduction: the sketches of units become one law a hookpoint while the run goes on, and say how the laws stand."""

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import final

import torch

from act.marginal import Marginal
from pipeline.errors import DamagedRunError
from pipeline.folder import RUNNING, RunFolder
from pipeline.folds import Folds, contents_of, fold_into, foldable
from pipeline.ledger import Ledger
from pipeline.sketch import HistogramSketch
from pipeline.storage import AbstractStorage, storage_at
from pipeline.store import ActivationStore
from schemas import record
from schemas.fold import Fold, UnitSet
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName
from schemas.receipt import Receipt
from schemas.running import PROBS, Running, RunningSite

#: Neurons of a site that its running quantiles are taken of, evenly spaced.
WATCHED = 256

#: Seconds after which running laws are told again. They are also told when the number of units has doubled.
TELL_EVERY = 30.0

#: Units that are folded before a reducer writes its folds while the run goes on, so that their sketches may go.
WRITE_EVERY = 64


@final
class Reducer:
    """Owns neighbouring hookpoints: folds the units' sketches of these, and of these alone, as receipts land.

    A plain class: only `pipeline.cluster` makes it an actor. Folding is integer addition, so neither the order of the
    units nor the number of reducers changes a bit; a unit that was folded already is left out. One that takes the
    place of a reducer that died begins with what that one had written.

    Args:
        plan: The plan.
        uri: Where the run lies.
        owned: Places in `plan.sites` of the hookpoints that it owns.
    """

    def __init__(self, plan: Plan, uri: str, owned: range) -> None:
        self._plan, self._storage, self._owned = plan, storage_at(uri), owned
        self._folds, self._ledger = Folds(self._storage, plan), Ledger(self._storage, plan)
        self._laws: dict[LawName, list[HistogramSketch]] = {}
        self._contents = dict.fromkeys(LAWS, UnitSet())
        self._written = dict.fromkeys(LAWS, UnitSet())
        self._waiting = dict.fromkeys(LAWS, UnitSet())
        self._watch = _Watch()
        self._told_units, self._told_at = 0, time.monotonic()
        self._resume()

    def fold(self, receipt: Receipt) -> None:
        """Adds a unit to the running laws, if it may be in a fold.

        Raises:
            DamagedRunError: A file is not what its receipt speaks of.
        """
        for law in LAWS:
            output = receipt.output(law)
            if output is None or receipt.unit in self._contents[law] or not foldable(self._plan, law, receipt.unit):
                continue
            if receipt.unit in self._waiting[law]:
                continue
            parts = self._folds.unit(receipt, law, self._owned)
            before = self._laws.get(law)
            self._laws[law] = (
                parts if before is None else [fold_into(*pair) for pair in zip(before, parts, strict=True)]
            )
            self._contents[law] = self._contents[law].with_unit(receipt.unit, output)
        if self._plan.compacts and self._unwritten >= WRITE_EVERY:
            self.write()
        if self._units >= 2 * self._told_units or time.monotonic() - self._told_at >= TELL_EVERY:
            self.tell()

    def finish(self) -> None:
        """Adds the units that are still missing, and writes the laws of its hookpoints.

        Raises:
            DamagedRunError: A file is not what its receipt speaks of.
            StoreError: The storage refuses.
        """
        if any(self._waiting[law] != UnitSet() for law in LAWS):
            self._resume()
        self._waiting = dict.fromkeys(LAWS, UnitSet())
        for receipt in self._ledger.receipts():
            self.fold(receipt)
        self.write()
        self.tell()

    def write(self) -> None:
        """Writes the running laws as folds, in place of those that it wrote before."""
        for law, sketches in self._laws.items():
            if self._written[law] != self._contents[law]:
                num_samples = sketches[0].num_samples
                written = self._folds.write(law, self._owned.start, self._contents[law], sketches, num_samples)
                self._written[law] = self._contents[law]
                for fold in self._folds.of(law):
                    if _within(fold, written):
                        self._folds.drop(fold)

    def tell(self) -> None:
        """Writes how the running laws stand, for `status`."""
        sites = tuple(
            self._watch.look(self._plan.sites[number].hookpoint, law, watched(self._laws[law][place]))
            for place, number in enumerate(self._owned)
            for law in LAWS
            if law in self._laws and self._laws[law][place].num_samples
        )
        running = Running(self._plan.fingerprint, self._units, sites)
        self._storage.note(RunFolder(self._storage).running(self._owned.start), record.seal(running))
        self._told_units, self._told_at = self._units, time.monotonic()

    def _resume(self) -> None:
        """Begins with the folds that there are, if they are of the very sketches that receipts speak of.

        A fold may have a unit whose receipt is gone, and the only sketches of the others. They wait until the unit has
        run again: its bits are the same, and the fold is good again.
        """
        for law in LAWS:
            found = self._folds.covering(law, self._owned)
            if found is None or found[0].num_units <= self._contents[law].num_units:
                continue
            if contents_of(self._ledger, law, found[0]) == found[0]:
                with suppress(DamagedRunError):
                    self._laws[law] = self._folds.load(found[1], self._owned)
                    self._contents[law] = found[0]
            elif self._plan.compacts:
                self._waiting[law] = found[0]

    @property
    def _units(self) -> int:
        return sum(contents.num_units for contents in self._contents.values())

    @property
    def _unwritten(self) -> int:
        """Units that are folded and in no written fold."""
        return self._units - sum(contents.num_units for contents in self._written.values())


def _within(fold: Fold, other: Fold) -> bool:
    """Whether all that a fold has, another has too, and more."""
    units, more = UnitSet.of(fold).units, UnitSet.of(other).units
    return fold != other and other.first <= fold.first and fold.stop <= other.stop and units & ~more == 0


def running(storage: AbstractStorage, plan: Plan) -> tuple[RunningSite, ...]:
    """Returns the running laws of a run, site by site: what its reducers told last, or what exact laws hold so far.

    Args:
        storage: Where the run lies.
        plan: Its plan.
    """
    told: dict[tuple[str, LawName], RunningSite] = {}
    for key in storage.keys(RUNNING):
        with suppress(record.RecordError, FileNotFoundError):  # its reducer will write it again
            for site in _said(plan, record.unseal(Running, storage.read(key))):
                before = told.get((site.hookpoint, site.law))
                # An earlier start may have had other reducers: what counts is who has seen most.
                if before is None or site.num_samples >= before.num_samples:
                    told[site.hookpoint, site.law] = site
    for side in SIDES:
        if plan.law[side].kind == "exact":
            told |= {(site.hookpoint, side): site for site in _exact(storage, plan, side)}
    order = [(site.hookpoint, law) for site in plan.sites for law in LAWS]
    return tuple(told[key] for key in order if key in told)


def _said(plan: Plan, said: Running) -> tuple[RunningSite, ...]:
    return said.sites if said.plan == plan.fingerprint else ()


def _exact(storage: AbstractStorage, plan: Plan, side: SideName) -> Iterator[RunningSite]:
    store, watch = ActivationStore(storage, plan), _Watch()
    done = list(Ledger(storage, plan).receipts(side))
    for site in plan.sites if done else ():
        samples = store.samples(side, plan.columns[site.hookpoint], done)
        if len(samples):
            every = slice(0, None, max(1, site.width // WATCHED))
            yield watch.look(site.hookpoint, side, Marginal.from_samples(torch.from_numpy(samples[:, every])))


def shares(plan: Plan) -> list[range]:
    """Returns which sites each reducer owns: neighbours, of about as many neurons together; none owns nothing."""
    num_reducers = min(plan.spec["compute"]["reducers"], len(plan.sites))
    counts, before = [0] * num_reducers, 0
    for site in plan.sites:
        counts[min(num_reducers - 1, (before + site.width // 2) * num_reducers // plan.width)] += 1
        before += site.width
    stops = itertools.accumulate(counts)
    return [range(stop - count, stop) for count, stop in zip(counts, stops, strict=True) if count]


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
