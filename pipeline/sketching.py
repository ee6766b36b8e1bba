"""Sketching: the samples of a unit become one sketch a site, and the words that are stored."""

from collections.abc import Iterable, Iterator
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.forward import TokenSink
from pipeline.frames import read_frame
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.storage import AbstractStorage
from pipeline.store.activations import Block
from pipeline.store.sketches import Words, words_per_neuron
from schemas.plan import LAWS, LawName, Plan


@final
class Sketcher:
    """Sketches units, in the frames of the run.

    Args:
        plan: The plan.
        storage: Where the run lies.
    """

    def __init__(self, plan: Plan, storage: AbstractStorage) -> None:
        self._plan, self._storage = plan, storage
        self._grids = {law: Grid(plan.precision(law)) for law in LAWS}
        self._columns = list(plan.columns.values())
        self._frames: dict[LawName, Frame] = {}
        self._words: Words = np.empty((0, 0), np.int32)

    def empty(self, law: LawName, device: torch.device) -> list[HistogramSketch]:
        """Returns a sketch of nothing for each site."""
        return [HistogramSketch.empty(frame, self._grids[law], device) for frame in self._frame(law)]

    def pooled(self, law: LawName, block: Block, kept: NDArray[np.bool_]) -> Iterator[HistogramSketch]:
        """Yields the sketch of a unit's pooled samples for each site, one after the other.

        Args:
            law: The law that they belong to.
            block: The samples, `[rows, neurons of all sites]`.
            kept: Which rows hold samples.
        """
        rows = slice(None) if kept.all() else kept
        for columns, frame in zip(self._columns, self._frame(law), strict=True):
            sketch = HistogramSketch.empty(frame, self._grids[law])
            sketch.update(torch.from_numpy(np.ascontiguousarray(block[rows, columns])))
            yield sketch

    def words(self, law: LawName, sketches: Iterable[HistogramSketch]) -> Words:
        """Returns the sketches of all sites, `[neurons of all sites, words]`; the next call overwrites them."""
        shape = (self._plan.width, words_per_neuron(self._plan.precision(law)))
        if self._words.shape != shape:  # one allocation serves all units of a side
            self._words = np.empty(shape, np.int32)
        for columns, sketch in zip(self._columns, sketches, strict=True):
            self._words[columns] = sketch.to_words().cpu().numpy()
        return self._words

    def _frame(self, law: LawName) -> Iterator[Frame]:
        if law not in self._frames:
            self._frames[law] = read_frame(self._storage, self._plan, law)
        return (self._frames[law][columns] for columns in self._columns)


def counting(sketches: list[HistogramSketch]) -> TokenSink:
    """Returns a sink that sketches tokens. One that is not finite is left out, as its prompt is quarantined."""

    def count(site: int, values: torch.Tensor) -> None:
        if not values.sum().isfinite():  # or the sum overflows, and nothing is left out
            values = values[values.isfinite().all(dim=1)]
        sketches[site].update(values)

    return count
