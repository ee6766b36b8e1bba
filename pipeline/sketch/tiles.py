"""What the compiled loop takes: tuples of arrays and numbers, the records that Numba knows.

Numba knows fields by their place, and looks only at the date of `loop` when it asks whether machine code that it has
kept is up to date. Whoever moves a field here changes `loop` too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.sketch.arrays import FAR, MOMENT_BITS, SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid

#: Rows that are swept at once: enough that what is done once for them is little.
ROWS = 128

#: Neurons that are swept at once: with their keys they fit the second cache, and are enough to fill vectors.
NEURONS = 512

#: Values that are converted to float32 at once.
CONVERTED = 1 << 18

#: Numbers of Python or of NumPy: the loop has both, and Numba knows only machine types.
Integer = int | np.signedinteger[Any]
Real = float | np.floating[Any]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Sums = NDArray[np.int64]


class Block(NamedTuple):
    """Values as one axis: row r starts at `r * stride`."""

    values: Floats
    stride: int
    rows: int


def blocks(values: torch.Tensor) -> Iterator[Block]:
    """Yields values, `[rows, neurons]`, in blocks of rows: as they are if they can be, else copied into one buffer."""
    rows, neurons = values.shape
    if values.dtype == torch.float32 and (values.stride(1) == 1 or neurons == 1):
        stride = values.stride(0) if rows > 1 else neurons
        yield Block(values.as_strided(((rows - 1) * stride + neurons,), (1,)).numpy(), stride, rows)
        return
    buffer = torch.empty(max(1, min(rows, CONVERTED // neurons // ROWS * ROWS)), neurons)
    for start in range(0, rows, buffer.shape[0]):
        block = values[start : start + buffer.shape[0]]
        buffer[: block.shape[0]].copy_(block)
        yield Block(buffer.view(-1).numpy(), neurons, block.shape[0])


class FrameTuple(NamedTuple):
    """The tensors of a `Frame`."""

    centre: Floats
    exponent: Ints
    widest: Ints
    moment_exponent: Ints

    @classmethod
    def of(cls, frame: Frame) -> "FrameTuple":
        """Returns the frame in the same memory."""
        return cls(**{name: tensor.numpy() for name, tensor in frame.to_tensors().items()})


class StateTuple(NamedTuple):
    """The tensors of a `SketchArrays`, the counts as one axis."""

    exponent: Ints
    counts: Ints
    low: Floats
    high: Floats
    first: Sums
    second_high: Sums
    second_low: Sums
    nans: Sums
    plus_infs: Sums
    minus_infs: Sums
    far: Sums

    @classmethod
    def of(cls, state: SketchArrays) -> "StateTuple":
        """Returns the state in the same memory."""
        return cls(**{name: tensor.view(-1).numpy() for name, tensor in state.tensors().items()})


class GridTuple(NamedTuple):
    """A grid in the numbers that keys are made of.

    Args:
        num: Number of cells of a neuron.
        last: The key of the open end, H + 1; also the place of the atom.
        precision: Binary logarithm of the number of cells in an octave.
        reach: Binary logarithm of the last edge.
        unit: `2^precision`.
        shift: `23 − precision`, the digits of a float's fraction that do not tell its cell.
        offset: What is added to a float's bits before they are shifted.
        far: The first integer that is too far for the moments.
        moment_bits: Binary digits of the moments below a neuron's moment exponent.
    """

    num: int
    last: np.int32
    precision: int
    reach: int
    unit: np.float32
    shift: np.int32
    offset: np.int32
    far: np.float32
    moment_bits: int

    @classmethod
    def of(cls, grid: Grid) -> "GridTuple":
        """Returns the numbers of a grid."""
        unit, shift = np.float32(1 << grid.precision), 23 - grid.precision
        return cls(
            num=grid.num_cells,
            last=np.int32(grid.atom),
            precision=grid.precision,
            reach=grid.reach,
            unit=unit,
            shift=np.int32(shift),
            offset=np.int32((1 << shift) - 1 - int(unit.view(np.int32))),
            far=np.float32(FAR),
            moment_bits=MOMENT_BITS,
        )


class Tile(NamedTuple):
    """What the loop knows of the neurons that it sweeps, an entry for each.

    Args:
        centre: The frame's.
        scale: `2^(precision − exponent)`.
        quanta: `2^(16 − moment exponent)`.
        limit: The distance from the centre up to which the sweep alone is right.
        low: The smallest value of the sweep, as `loop.order` maps it.
        high: The largest.
        widest: The frame's.
        moment: The frame's moment exponent.
        atom: Place of the neuron's atom in the counts of the tile.
        first: Sum of the moments' integers.
        second: Sum of their squares.
        keys: `[ROWS * neurons]`: place of each value's cell in the counts of the tile.
    """

    centre: Floats
    scale: Floats
    quanta: Floats
    limit: Floats
    low: Ints
    high: Ints
    widest: Ints
    moment: Ints
    atom: Ints
    first: Sums
    second: Sums
    keys: Ints

    @classmethod
    def empty(cls, num_neurons: int) -> "Tile":
        """Returns a tile for so many neurons, or for as many as are swept at once."""
        width = min(NEURONS, num_neurons)
        centre, scale, quanta, limit = np.empty((4, width), np.float32)
        low, high, widest, moment, atom = np.empty((5, width), np.int32)
        first, second = np.empty((2, width), np.int64)
        keys = np.empty(ROWS * width, np.int32)
        return cls(centre, scale, quanta, limit, low, high, widest, moment, atom, first, second, keys)


class Span(NamedTuple):
    """What one sweep reads.

    Args:
        begin: Place of its first value in the block.
        rows: Number of rows.
        start: Its first neuron, among those of the state.
        width: Number of neurons.
    """

    begin: Integer
    rows: Integer
    start: Integer
    width: Integer
