"""Folds: the merged sketches of many units, found and written; and single units, read and added.

The last unit of a side is left out of every fold if it is not full: it alone changes when prompts are appended, so that
a run that grows takes folds over as they are.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch

from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.ledger import REPAIR, Ledger, described
from pipeline.sketch import Grid, HistogramSketch
from pipeline.sketch.errors import OtherFrameError, SketchWordsError
from pipeline.storage import AbstractStorage
from pipeline.store import SketchStore
from pipeline.store.sketches import Words
from schemas import record
from schemas.fold import Fold, UnitSet
from schemas.plan import LawName, Plan, side_of
from schemas.receipt import Output, Receipt


def foldable(plan: Plan, law: LawName, unit: int) -> bool:
    """Returns whether folds may have a unit: one that is full, and stays so when prompts are appended."""
    return plan.unit(side_of(law), unit).num_prompts == plan.unit_size


@final
class Folds:
    """The folds of a run, and the sketches of its units.

    Args:
        storage: Where the run lies.
        plan: Its plan.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._plan, self._folder = storage, plan, RunFolder(storage)
        self._sketches = SketchStore(storage, plan)
        self._ledger = Ledger(storage, plan)
        self._checked: set[Output] = set()

    def of(self, law: LawName) -> list[Fold]:
        """Returns the folds of a law, those with most units first; one that is damaged, or of another law, is none."""
        key = self._plan.side_key(side_of(law))
        found = []
        for place in self._storage.keys(self._folder.folds(law)):
            if place.endswith(".json"):
                try:
                    fold = record.unseal(Fold, self._storage.read(place))
                except (record.RecordError, FileNotFoundError):
                    continue  # it is a short cut; `verify` names it
                if (fold.key, fold.law) == (key, law) and fold.stop <= len(self._plan.sites):
                    found.append(fold)
        return sorted(found, key=lambda fold: (-fold.num_units, fold.first))

    def covering(self, law: LawName, sites: range) -> tuple[UnitSet, list[Fold]] | None:
        """Returns the folds that together have all of some sites, and the units that they have, as many as possible."""
        groups: dict[UnitSet, list[Fold]] = {}
        for fold in self.of(law):  # those with most units come first
            groups.setdefault(UnitSet.of(fold), []).append(fold)
        for contents, folds in groups.items():
            if all(any(fold.covers(site) for fold in folds) for site in sites):
                return contents, folds
        return None

    def place(self, fold: Fold) -> str:
        """Returns the key of a fold's record."""
        return f"{self._named(fold.law, range(fold.first, fold.stop), UnitSet.of(fold))}.json"

    def write(
        self, law: LawName, first: int, contents: UnitSet, sketches: Sequence[HistogramSketch], num_samples: int
    ) -> Fold:
        """Writes a fold: the sketches, and then what they are. One with the same units is left.

        Args:
            law: The law.
            first: Place of the first site.
            contents: The units.
            sketches: A merged sketch for each of the sites.
            num_samples: Samples of a neuron.

        Raises:
            StoreError: The storage refuses.
        """
        stop = first + len(sketches)
        words = torch.cat([sketch.to_words() for sketch in sketches]).numpy()
        folder = self._named(law, range(first, stop), contents)
        array = self._sketches.fold(law, folder, len(words))
        data = array.encode((0,), (slice(0, len(words)), slice(0, words.shape[1])), words)
        output = described(law, array.key(0), data)
        key = self._plan.side_key(side_of(law))
        fold = Fold(key, law, first, stop, contents.bitmap, contents.total, num_samples, output)
        self._storage.write(output.path, data)
        self._storage.write(self.place(fold), record.seal(fold))
        return fold

    def _named(self, law: LawName, sites: range, contents: UnitSet) -> str:
        """The folder of a fold. Reducers of a driver that died may still write: other contents have another name."""
        name = f"{sites.start:05d}-{sites.stop:05d}-{contents.num_units:08d}-{contents.total:016x}"
        return f"{self._folder.folds(law)}/{name}"

    def drop(self, fold: Fold) -> None:
        """Deletes a fold: what it is, and then its sketches."""
        self._storage.delete(self.place(fold))
        self._storage.delete(fold.output.path)

    def load(self, folds: Sequence[Fold], sites: range) -> list[HistogramSketch]:
        """Returns the merged sketches of some sites, one a site, from folds that have them.

        Raises:
            DamagedRunError: A file is not as it was written.
        """
        return [self._site(next(fold for fold in folds if fold.covers(site)), site) for site in sites]

    def are_whole(self, folds: Sequence[Fold]) -> bool:
        """Returns whether the files of folds are as they were written."""
        try:
            for fold in folds:
                self._check(fold)
        except DamagedRunError:
            return False
        return True

    def _check(self, fold: Fold) -> None:
        if fold.output not in self._checked:
            self._ledger.check(fold.output)
            self._checked.add(fold.output)

    def _site(self, fold: Fold, site: int) -> HistogramSketch:
        self._check(fold)
        start, stop = self._columns(fold.first).start, self._columns(fold.stop - 1).stop
        array = self._sketches.fold(fold.law, fold.output.path.rpartition("/c/")[0], stop - start)
        columns = self._columns(site)
        region = (slice(columns.start - start, columns.stop - start), slice(0, array.shape[1]))
        words = array.read(region, self._storage.place(fold.output.path), REPAIR)
        return next(self._cut(fold.law, words, range(site, site + 1), fold.output.path))

    def unit(self, receipt: Receipt, law: LawName, sites: range) -> list[HistogramSketch]:
        """Returns a unit's sketches of neighbouring sites, every byte of its file checked.

        Raises:
            DamagedRunError: The file is not what its receipt speaks of.
        """
        output = receipt.output(law)
        assert output is not None, "the unit has a sketch of this law"
        columns = slice(self._columns(sites.start).start, self._columns(sites.stop - 1).stop)
        words = self._sketches.decode(law, receipt.unit, columns, self._ledger.load(output))
        return list(self._cut(law, words, sites, output.path))

    def _columns(self, site: int) -> slice:
        return self._plan.columns[self._plan.sites[site].hookpoint]

    def _cut(self, law: LawName, words: Words, sites: range, path: str) -> Iterator[HistogramSketch]:
        start, grid = self._columns(sites.start).start, Grid(self._plan.precision(law))
        for site in sites:
            columns = self._columns(site)
            part = torch.from_numpy(words[columns.start - start : columns.stop - start])
            try:
                yield HistogramSketch.from_words(part, grid)
            except SketchWordsError as exc:
                raise DamagedRunError(self._storage.place(path), str(exc), REPAIR) from exc


def contents_of(ledger: Ledger, law: LawName, among: UnitSet) -> UnitSet:
    """Returns what the receipts say of the units that are among some."""
    contents = UnitSet()
    for receipt in ledger.receipts(side_of(law)) if among.units else ():
        output = receipt.output(law)
        if output is not None and receipt.unit in among:
            contents = contents.with_unit(receipt.unit, output)
    return contents


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
        raise DamagedRunError("a sketch", str(exc), REPAIR) from exc
    return running
