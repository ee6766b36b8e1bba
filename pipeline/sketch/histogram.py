"""The sketch of a neuron's law that merges bit for bit in any order."""

from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal
from pipeline.sketch.arrays import MAX_SAMPLES, SketchArrays
from pipeline.sketch.errors import CountOverflowError, SketchWordsError
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.health import Health
from pipeline.sketch.interface import AbstractSketch, NonFinite, check_same, check_values
from pipeline.sketch.kernels import count
from pipeline.sketch.law import law
from pipeline.sketch.widening import fold
from pipeline.sketch.words import EXTRA_WORDS, FRAME_WORDS, frame_words, read_frame, read_state, state_words

KIND = 1


@final
@dataclass(frozen=True, eq=False)
class HistogramSketch(AbstractSketch):
    """Counts of each neuron's values in the cells of its frame, with exact extremes and moments, all integers.

    The scale of a neuron's cells is the smallest, from its frame's on, that reaches all its values, so it depends on
    the samples and not on their order; and counts at a scale are exactly those at half the scale, added up. Merging
    is therefore commutative and associative bit for bit, and equals one pass over all samples.

    Built by `empty` or `from_words`.

    Args:
        frame: Where the neurons' cells lie.
        grid: The cells.
        arrays: What was counted; updated in place.
    """

    frame: Frame
    grid: Grid
    arrays: SketchArrays

    @classmethod
    def empty(cls, frame: Frame, grid: Grid | None = None, device: torch.device | str = "cpu") -> "HistogramSketch":
        """Returns the sketch of no samples.

        Args:
            frame: The frame of all sketches that it will be merged with.
            grid: Their cells; None is `Grid()`.
            device: Where it counts. Values from elsewhere are copied there.
        """
        grid = grid or Grid()
        arrays = SketchArrays.empty(frame.num_neurons, grid, device)
        arrays.exponent.copy_(frame.exponent)
        return cls(frame.to(device), grid, arrays)

    @classmethod
    def from_words(cls, words: torch.Tensor, grid: Grid | None = None) -> "HistogramSketch":
        """Returns the sketch whose `to_words` these are.

        Raises:
            SketchWordsError: They are no words of a sketch of this grid.
        """
        grid = grid or Grid()
        if words.ndim != 2 or words.dtype != torch.int32 or words.shape[1] != grid.num_cells + EXTRA_WORDS:
            wanted = f"[neurons, {grid.num_cells + EXTRA_WORDS}] in torch.int32"
            raise SketchWordsError(f"found {list(words.shape)} in {words.dtype}, wanted {wanted}")
        counts, extra = words[:, : grid.num_cells], words[:, grid.num_cells :]
        frame = read_frame(extra, KIND, grid)
        return cls(frame, grid, read_state(counts, extra[:, FRAME_WORDS:], frame))

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.frame.num_neurons

    @property
    def num_samples(self) -> int:
        """Rows seen, the same for every neuron, whether or not their values were finite."""
        return int(self.arrays.counts[:1].sum() + self.nonfinite.total[:1].sum())

    @property
    def nonfinite(self) -> NonFinite:
        """Values that were not finite, counted apart."""
        return NonFinite(self.arrays.nans, self.arrays.plus_infs, self.arrays.minus_infs)

    def update(self, values: torch.Tensor) -> None:
        """Counts samples, in place, by the fastest kernel there is; all kernels give the same bits.

        Args:
            values: `[rows, neurons]`, any float dtype; float64 is rounded to float32, where what is beyond its range
                becomes infinite.

        Raises:
            SketchShapeError: It has other axes, or no float dtype.
            CountOverflowError: The sketch would hold more than 2^31 − 1 samples.
        """
        check_values(values, self.num_neurons)
        self._check_room(values.shape[0])
        count(values.detach(), self.frame, self.grid, self.arrays)

    def merge(self, other: AbstractSketch) -> "HistogramSketch":
        """Returns the sketch of both sketches' samples; neither is changed.

        Raises:
            OtherFrameError: They count in different frames or grids.
            CountOverflowError: They hold more than 2^31 − 1 samples together.
        """
        merged = HistogramSketch(self.frame, self.grid, self.arrays.clone())
        merged.fold(other)
        return merged

    def fold(self, other: AbstractSketch) -> None:
        """Adds another sketch's samples, in place; the other is not changed.

        At equal scales it is one addition of integers. Otherwise only the neurons whose scales differ are coarsened.

        Raises:
            OtherFrameError: They count in different frames or grids.
            CountOverflowError: They hold more than 2^31 − 1 samples together.
        """
        self._check_room(other.num_samples)
        other.count_into(self.frame, self.grid, self.arrays)

    def count_into(self, frame: Frame, grid: Grid, state: SketchArrays) -> None:
        """Adds this sketch's samples to the state of another in the same frame and grid, in place.

        Raises:
            OtherFrameError: It counts in another frame or grid.
        """
        check_same(frame, grid, self.frame, self.grid)
        fold(state, self.arrays.to(state.counts.device), self.frame.centre.to(state.counts.device), self.grid)

    def neurons(self, part: slice) -> "HistogramSketch":
        """Returns the sketch of some neurons, in the same memory: updating it updates this sketch's neurons."""
        return HistogramSketch(self.frame[part], self.grid, self.arrays.neurons(part))

    def marginal(self) -> Marginal:
        """Returns the law of each neuron: its occupied cells, with proven errors.

        Raises:
            NotFiniteError: Some value was not finite.
            EmptyMarginalError: There are no samples.
        """
        return law(self.frame, self.grid, self.arrays)

    def health(self) -> Health:
        """Returns how well the frame fits the samples."""
        return Health.of(self.arrays, self.grid)

    def same_bits(self, other: AbstractSketch) -> bool:
        """Returns whether two sketches are the same, bit for bit, frame and grid included."""
        if not isinstance(other, HistogramSketch) or self.grid != other.grid:
            return False
        return torch.equal(self.to_words(), other.to_words())

    def to_words(self) -> torch.Tensor:
        """Returns the whole sketch as integers, `[neurons, num_cells + EXTRA_WORDS]`, int32, the counts first."""
        parts = [self.arrays.counts, *frame_words(KIND, self.frame, self.grid), *state_words(self.arrays)]
        return torch.cat(parts, dim=1)

    def _check_room(self, rows: int) -> None:
        if (found := self.num_samples + rows) > MAX_SAMPLES:
            raise CountOverflowError(found, MAX_SAMPLES)
