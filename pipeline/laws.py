"""The laws of a run, whatever they were made of: stored values, folds, or the sketches of units."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal
from pipeline.errors import DamagedRunError
from pipeline.folds import Folds, contents_of, fold_into
from pipeline.ledger import REPAIR, Ledger
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.storage import AbstractStorage
from pipeline.store import ActivationStore
from schemas.fold import Fold, UnitSet
from schemas.plan import SIDES, LawName, Plan, SideName, side_of
from schemas.receipt import Receipt

#: Samples that are read at once when a frame is mended: 64 MiB of float32.
MEND_SIZE = 1 << 24


@final
@dataclass(frozen=True)
class Misfits:
    """Neurons of a site whose frame did not fit their samples.

    Args:
        mended: Those that a new frame, from the stored activations, fits.
        left: Those that no activations were stored for, or that no frame fits: too few values, too far apart.
    """

    mended: int
    left: int


@final
@dataclass(frozen=True)
class _Begun:
    """What a law is added up from.

    Args:
        folds: Merged units.
        others: The receipts of the units that are not in them.
    """

    folds: Sequence[Fold]
    others: Sequence[Receipt]


@final
class Laws:
    """The laws of a run whose units are all done.

    Args:
        storage: Where the run lies.
        plan: The plan.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._plan, self._storage = plan, storage
        self._activations, self._folds = ActivationStore(storage, plan), Folds(storage, plan)
        self._ledger = Ledger(storage, plan)
        self._laws: dict[tuple[LawName, UnitSet], _Begun] = {}
        self._listed: dict[SideName, list[Receipt]] = {}
        self._misfits: dict[tuple[LawName, int], Misfits] = {}
        self._lock = threading.Lock()  # sites are fitted side by side

    def marginal(self, law: LawName, site: int) -> Marginal:
        """Returns the law of each neuron of a site.

        Args:
            law: ``source``, ``target``, or ``tokens``: the source's single tokens, of which there must be some.
            site: Place in `plan.sites`.

        Raises:
            DamagedRunError: A store does not hold what the receipts say.
        """
        if law != "tokens" and self._plan.law[law].kind == "exact":
            return Marginal.from_samples(self.samples(law, site))
        sketch = self._sketch(law, site)
        if sketch is None:
            raise DamagedRunError(self._storage.place("receipts"), f"no unit has a sketch of {law}", REPAIR)
        return self._mended(law, site, sketch).marginal()

    def tokens(self, site: int) -> Marginal | None:
        """Returns the law of the source's single tokens, or None if every prompt that was to give some is quarantined.

        Raises:
            DamagedRunError: A store does not hold what the receipts say.
        """
        sketch = self._sketch("tokens", site)
        return sketch.marginal() if sketch is not None and sketch.num_samples else None

    def samples(self, side: SideName, site: int) -> torch.Tensor:
        """Returns the stored samples of a site in the order of the prompts, `[samples, neurons]`, float32.

        Raises:
            DamagedRunError: The store does not hold what the receipts say.
        """
        columns = self._plan.columns[self._plan.sites[site].hookpoint]
        return torch.from_numpy(self._activations.samples(side, columns, self._receipts(side)))

    def misfits(self, site: int) -> Misfits:
        """Returns how many neurons of the laws that were asked for had a frame that did not fit, on either side."""
        found = [self._misfits[law, site] for law in SIDES if (law, site) in self._misfits]
        return Misfits(sum(one.mended for one in found), sum(one.left for one in found))

    def _sketch(self, law: LawName, site: int) -> HistogramSketch | None:
        """Returns the sketch of a site: folds of most of its units, and the others added; None if there are none."""
        if not self._plan.sketched_units(law):
            return None
        begun, sites = self._begun(law, site), range(site, site + 1)
        merged = self._folds.load(begun.folds, sites)[0] if begun.folds else None
        for receipt in begun.others:
            merged = fold_into(merged, self._folds.unit(receipt, law, sites)[0])
        return merged

    def _begun(self, law: LawName, site: int) -> "_Begun":
        """Returns what a site's law is added up from.

        Folds are a short cut: those of other sketches are passed by, and damaged ones. Each site has its own, for not
        every reducer may have come equally far.
        """
        with self._lock:
            wanted, folds = self._folds.covering(law, range(site, site + 1)) or (UnitSet(), [])
            if (law, wanted) not in self._laws:
                sound = contents_of(self._ledger, law, wanted) == wanted and self._folds.are_whole(folds)
                contents = wanted if sound else UnitSet()
                receipts = self._ledger.receipts(side_of(law))
                others = [one for one in receipts if one.output(law) is not None and one.unit not in contents]
                self._laws[law, wanted] = _Begun(folds if sound else [], others)
        return self._laws[law, wanted]

    def _receipts(self, side: SideName) -> list[Receipt]:
        """Returns the receipts of a side whose activations are to be read, the files of all of them checked."""
        with self._lock:
            if side not in self._listed:
                self._listed[side] = list(self._ledger.receipts(side))
                for receipt in self._listed[side]:
                    output = receipt.output("activations")
                    if output is not None:
                        self._ledger.check(output)
        return self._listed[side]

    def _mended(self, law: LawName, site: int, sketch: HistogramSketch) -> HistogramSketch:
        """Returns a sketch whose misfits are counted anew, in frames taken from all their stored samples."""
        misfit = sketch.health().misfit.nonzero()[:, 0]
        side: SideName | None = None if law == "tokens" else law
        self._misfits[law, site] = Misfits(0, len(misfit))
        if side is None or self._plan.law[side].misfits == "report" or not len(misfit):
            return sketch
        words, start = sketch.to_words(), self._plan.columns[self._plan.sites[site].hookpoint].start
        step = max(1, MEND_SIZE // max(1, sketch.num_samples))
        grid = Grid(self._plan.precision(law))
        for neurons in torch.split(misfit, step):
            parts = [
                self._activations.samples(side, slice(c, c + 1), self._receipts(side))
                for c in (neurons + start).tolist()
            ]
            samples = torch.cat([torch.from_numpy(part) for part in parts], dim=1)
            anew = HistogramSketch.empty(Frame.from_pilot(samples), grid)
            anew.update(samples)
            words[neurons] = anew.to_words()
        mended = HistogramSketch.from_words(words, grid)
        left = int(mended.health().misfit.sum())
        self._misfits[law, site] = Misfits(len(misfit) - left, left)
        return mended
