"""The laws of a run, whatever they were made of: stored values, finished laws, or the sketches of units."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from act.marginal import Marginal
from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.reduce import as_sketch, fold_into, read_unit
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.store import ActivationStore, SketchStore
from schemas.plan import SIDES, LawName, Plan, SideName
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
class Laws:
    """The laws of a run whose units are all done.

    Args:
        plan: The plan.
        root: The run folder.
        receipts: The receipts of all units.
    """

    def __init__(self, plan: Plan, root: Path, receipts: Sequence[Receipt]) -> None:
        folder = RunFolder(root)
        self._plan, self._root = plan, root
        self._activations = ActivationStore(folder.activations, plan)
        self._sketches = SketchStore(folder.sketches, plan)
        ordered = sorted(receipts, key=lambda receipt: receipt.unit)
        self._receipts = {name: [one for one in ordered if one.side == name] for name in SIDES}
        self._misfits: dict[tuple[LawName, int], Misfits] = {}

    def marginal(self, law: LawName, site: int) -> Marginal:
        """Returns the law of each neuron of a site.

        Args:
            law: ``source``, ``target``, or ``tokens``: the source's single tokens, of which there must be some.
            site: Place in `plan.sites`.

        Raises:
            DamagedRunError: A store does not hold what the receipts say.
        """
        if law != "tokens" and self._plan.law.kind == "exact":
            return Marginal.from_samples(self.samples(law, site))
        sketch = self._sketch(law, site)
        if sketch is None:
            raise DamagedRunError(str(self._root / "receipts"), f"no unit has a sketch of {law}")
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
        return torch.from_numpy(self._activations.samples(side, columns, self._receipts[side]))

    def misfits(self, site: int) -> Misfits:
        """Returns how many neurons of the laws that were asked for had a frame that did not fit, on either side."""
        found = [self._misfits[law, site] for law in SIDES if (law, site) in self._misfits]
        return Misfits(sum(one.mended for one in found), sum(one.left for one in found))

    def _sketch(self, law: LawName, site: int) -> HistogramSketch | None:
        """Returns the sketch of a site: the finished law, or else those of the units merged; None if there are none.

        A finished law is only a short cut. One that is damaged, or that counts other samples than the receipts do, is
        passed by.
        """
        receipts = [one for one in self._receipts["source" if law == "tokens" else law] if one.output(law) is not None]
        with suppress(DamagedRunError):
            words = self._sketches.read_law(law, site)
            if words is not None:
                finished = as_sketch(self._plan, law, words, self._root, "")
                if law == "tokens" or finished.num_samples == sum(
                    one.num_samples(self._plan.rows_per_prompt) for one in receipts
                ):
                    return finished
        merged: HistogramSketch | None = None
        for receipt in receipts:
            merged = fold_into(merged, read_unit(self._plan, self._sketches, law, receipt.unit, site))
        return merged

    def _mended(self, law: LawName, site: int, sketch: HistogramSketch) -> HistogramSketch:
        """Returns a sketch whose misfits are counted anew, in frames taken from all their stored samples."""
        misfit = sketch.health().misfit.nonzero()[:, 0]
        side: SideName | None = None if law == "tokens" else law
        there = side is not None and all(one.output("activations") for one in self._receipts[side])
        self._misfits[law, site] = Misfits(0, len(misfit))
        if side is None or not there or not len(misfit):
            return sketch
        words, start = sketch.to_words(), self._plan.columns[self._plan.sites[site].hookpoint].start
        step = max(1, MEND_SIZE // max(1, sketch.num_samples))
        for neurons in torch.split(misfit, step):
            parts = [self._activations.samples(side, slice(c, c + 1), self._receipts[side]) for c in (neurons + start)]
            samples = torch.cat([torch.from_numpy(part) for part in parts], dim=1)
            anew = HistogramSketch.empty(Frame.from_pilot(samples), Grid(self._plan.law.precision))
            anew.update(samples)
            words[neurons] = anew.to_words()
        mended = HistogramSketch.from_words(words, Grid(self._plan.law.precision))
        left = int(mended.health().misfit.sum())
        self._misfits[law, site] = Misfits(len(misfit) - left, left)
        return mended
