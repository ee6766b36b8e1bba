"""The sketch of a small job: it keeps the values."""

from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal, ascending
from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.errors import ExactLimitError, LostValuesError, SketchWordsError
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.histogram import HistogramSketch
from pipeline.sketch.interface import AbstractSketch, NonFinite, check_same, check_values
from pipeline.sketch.kernels import count
from pipeline.sketch.words import FRAME_WORDS, frame_words, read_frame

KIND = 2

#: Most samples whose values are kept: about as many bytes as the counts of a histogram.
LIMIT = 1024


@final
@dataclass(frozen=True, eq=False)
class ExactSketch(AbstractSketch):
    """Every value of each neuron, in ascending order, so that the order in which they came leaves no trace.

    −0.0 is kept as 0.0, and every NaN as the same NaN. What would hold more than `LIMIT` samples is refused, except
    by `merge`, which then returns the histogram that counting all these values from the start would have given.

    Built by `empty` or `from_words`.

    Args:
        frame: The frame of the histogram that it becomes.
        grid: The cells of that histogram.
        batches: The values, each `[neurons, rows]`, float32, never written to: the first is in ascending order, the
            others wait to be sorted into it.
    """

    frame: Frame
    grid: Grid
    batches: list[torch.Tensor]

    @classmethod
    def empty(cls, frame: Frame, grid: Grid | None = None, device: torch.device | str = "cpu") -> "ExactSketch":
        """Returns the sketch of no samples.

        Args:
            frame: The frame of all sketches that it will be merged with.
            grid: Their cells; None is `Grid()`.
            device: Where it keeps values. Those from elsewhere are copied there.
        """
        return cls(frame.to(device), grid or Grid(), [torch.empty((frame.num_neurons, 0), device=device)])

    @classmethod
    def from_words(cls, words: torch.Tensor, grid: Grid | None = None) -> "ExactSketch":
        """Returns the sketch whose `to_words` these are.

        Raises:
            SketchWordsError: They are no words of a sketch that keeps values.
        """
        if words.ndim != 2 or words.dtype != torch.int32 or not FRAME_WORDS <= words.shape[1] <= LIMIT + FRAME_WORDS:
            wanted = f"[neurons, {FRAME_WORDS} to {LIMIT + FRAME_WORDS}] in torch.int32"
            raise SketchWordsError(f"found {list(words.shape)} in {words.dtype}, wanted {wanted}")
        grid, rows = grid or Grid(), words.shape[1] - FRAME_WORDS
        frame = read_frame(words[:, rows:], KIND, grid)
        values = _ascending(words[:, :rows].contiguous().view(torch.float32))
        if not torch.equal(values.view(torch.int32), words[:, :rows]):
            raise SketchWordsError("the values of some neuron are not in ascending order")
        return cls(frame, grid, [values])

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.frame.num_neurons

    @property
    def num_samples(self) -> int:
        """Rows seen, the same for every neuron, whether or not their values were finite."""
        return sum(batch.shape[1] for batch in self.batches)

    @property
    def nonfinite(self) -> NonFinite:
        """Values that were not finite, counted apart."""
        values = self.values()
        return NonFinite(values.isnan().sum(dim=1), (values == torch.inf).sum(dim=1), (values == -torch.inf).sum(dim=1))

    def values(self) -> torch.Tensor:
        """Returns the values of each neuron in ascending order, NaN last, `[neurons, samples]`, float32."""
        if len(self.batches) > 1:
            self.batches[:] = [_ascending(torch.cat(self.batches, dim=1))]
        return self.batches[0]

    def update(self, values: torch.Tensor) -> None:
        """Keeps samples, in place.

        Args:
            values: `[rows, neurons]`, any float dtype, rounded to float32.

        Raises:
            SketchShapeError: It has other axes, or no float dtype.
            ExactLimitError: The sketch would keep more than `LIMIT` samples.
        """
        check_values(values, self.num_neurons)
        self._keep(values.detach().to(self.frame.centre.device, torch.float32, copy=True).t())

    def merge(self, other: AbstractSketch) -> AbstractSketch:
        """Returns the sketch of both sketches' samples; neither is changed.

        It keeps values if both do and there are at most `LIMIT`, and is a histogram otherwise.

        Raises:
            OtherFrameError: They belong to different frames or grids.
            CountOverflowError: They hold more samples together than a histogram can.
        """
        if isinstance(other, ExactSketch) and self.num_samples + other.num_samples <= LIMIT:
            merged: AbstractSketch = ExactSketch(self.frame, self.grid, [self.values()])
        else:
            merged = self.to_histogram()
        merged.fold(other)
        return merged

    def fold(self, other: AbstractSketch) -> None:
        """Adds another sketch's samples, in place; the other is not changed.

        Raises:
            OtherFrameError: They belong to different frames or grids.
            LostValuesError: The other has no values any more.
            ExactLimitError: They hold more than `LIMIT` samples together.
        """
        if not isinstance(other, ExactSketch):
            raise LostValuesError(type(other).__name__)
        check_same(self.frame, self.grid, other.frame, other.grid)
        self._keep(other.values().to(self.frame.centre.device))

    def to_histogram(self, frame: Frame | None = None, grid: Grid | None = None) -> HistogramSketch:
        """Returns the histogram of the values: the bits of counting them from the start.

        Args:
            frame: None is the frame of this sketch.
            grid: None is the grid of this sketch.
        """
        histogram = HistogramSketch.empty(frame or self.frame, grid or self.grid, self.frame.centre.device)
        histogram.update(self._rows())
        return histogram

    def count_into(self, frame: Frame, grid: Grid, state: SketchArrays) -> None:
        """Adds this sketch's samples to the state of a histogram in its frame, in place.

        Raises:
            OtherFrameError: The histogram counts in another frame or grid.
        """
        check_same(frame, grid, self.frame, self.grid)
        count(self._rows(), frame, grid, state)

    def neurons(self, part: slice) -> "ExactSketch":
        """Returns the sketch of some neurons. It may share memory with this one."""
        return ExactSketch(self.frame[part], self.grid, [self.values()[part]])

    def marginal(self) -> Marginal:
        """Returns the law of each neuron, which gives each value the same weight.

        Raises:
            NotFiniteError: Some value was not finite.
            EmptyMarginalError: There are no samples.
        """
        return Marginal.from_samples(self.values().t())

    def same_bits(self, other: AbstractSketch) -> bool:
        """Returns whether two sketches are the same, bit for bit, frame and grid included."""
        if not isinstance(other, ExactSketch) or self.grid != other.grid:
            return False
        return torch.equal(self.to_words(), other.to_words())

    def to_words(self) -> torch.Tensor:
        """Returns the whole sketch as integers, `[neurons, samples + 5]`, int32, the bits of the values first."""
        return torch.cat([self.values().view(torch.int32), *frame_words(KIND, self.frame, self.grid)], dim=1)

    def _rows(self) -> torch.Tensor:
        # A copy in rows, which kernels read several times faster than columns.
        return self.values().t().contiguous()

    def _keep(self, batch: torch.Tensor) -> None:
        if (found := self.num_samples + batch.shape[1]) > LIMIT:
            raise ExactLimitError(found, LIMIT)
        self.batches.append(batch)


def _ascending(values: torch.Tensor) -> torch.Tensor:
    """Returns rows of values in ascending order, NaN last, as a copy without −0.0 and with one kind of NaN."""
    ordered = ascending(values.t())
    return ordered.masked_fill_(ordered.isnan(), torch.nan)
