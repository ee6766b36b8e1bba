"""What every sketch can do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal
from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.errors import OtherFrameError, SketchShapeError
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid


@final
@dataclass(frozen=True, eq=False)
class NonFinite:
    """How many values of each neuron were not finite; they take no part in its law.

    Args:
        nans: `[neurons]`, int64.
        plus_infs: `[neurons]`, int64.
        minus_infs: `[neurons]`, int64.
    """

    nans: torch.Tensor
    plus_infs: torch.Tensor
    minus_infs: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """All values that were not finite, `[neurons]`, int64."""
        return self.nans + self.plus_infs + self.minus_infs


class AbstractSketch(ABC):
    """The laws of some neurons, in bounded memory and mergeable.

    Updates and merges commute: sketches of the same rows are the same bits, however the rows were divided among
    sketches and in which order these were updated and merged. `tests/pipeline/sketch/conformance.py` holds the laws
    that a sketch must obey.
    """

    @property
    @abstractmethod
    def num_neurons(self) -> int:
        """Number of neurons."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Rows seen, the same for every neuron, whether or not their values were finite."""

    @property
    @abstractmethod
    def nonfinite(self) -> NonFinite:
        """Values that were not finite, counted apart."""

    @abstractmethod
    def update(self, values: torch.Tensor) -> None:
        """Adds samples, in place.

        Args:
            values: `[rows, neurons]`, any float dtype, rounded to float32.

        Raises:
            SketchShapeError: It has other axes, or no float dtype.
            CountOverflowError: The sketch would hold more samples than it can.
        """

    @abstractmethod
    def merge(self, other: "AbstractSketch") -> "AbstractSketch":
        """Returns the sketch of both sketches' samples; neither is changed.

        Raises:
            OtherFrameError: They count in different frames or grids.
            CountOverflowError: They hold more samples together than a sketch can.
        """

    @abstractmethod
    def fold(self, other: "AbstractSketch") -> None:
        """Adds another sketch's samples, in place; the other is not changed.

        Raises:
            OtherFrameError: They count in different frames or grids.
            CountOverflowError: They hold more samples together than this sketch can.
        """

    @abstractmethod
    def count_into(self, frame: Frame, grid: Grid, state: SketchArrays) -> None:
        """Adds this sketch's samples to the state of a histogram in a frame and grid, in place.

        Raises:
            OtherFrameError: It counts in another frame or grid.
        """

    @abstractmethod
    def neurons(self, part: slice) -> "AbstractSketch":
        """Returns the sketch of some neurons. It may share memory with this one: fold it into others, not into it."""

    @abstractmethod
    def marginal(self) -> Marginal:
        """Returns the law of each neuron.

        Raises:
            NotFiniteError: Some value was not finite.
            EmptyMarginalError: There are no samples.
        """

    @abstractmethod
    def same_bits(self, other: "AbstractSketch") -> bool:
        """Returns whether two sketches are the same, bit for bit, frame and grid included."""

    @abstractmethod
    def to_words(self) -> torch.Tensor:
        """Returns the whole sketch as integers, `[neurons, words]`, int32; a neuron's row says all about it."""


def check_values(values: torch.Tensor, num_neurons: int) -> None:
    """Refuses a batch that is not `[rows, neurons]` in a float dtype.

    Raises:
        SketchShapeError: It is not.
    """
    if values.ndim != 2 or values.shape[1] != num_neurons or not values.dtype.is_floating_point:
        wanted = f"[rows, {num_neurons}] in a float dtype"
        raise SketchShapeError("the batch", values.shape, str(values.dtype), wanted)


def check_same(frame: Frame, grid: Grid, other_frame: Frame, other_grid: Grid) -> None:
    """Refuses sketches whose cells are not the same cells.

    Raises:
        OtherFrameError: The frames or the grids differ.
    """
    if grid != other_grid:
        raise OtherFrameError(f"one counts in {grid}, the other in {other_grid}")
    if difference := frame.difference(other_frame):
        raise OtherFrameError(difference)
