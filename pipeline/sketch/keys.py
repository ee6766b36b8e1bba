"""Counting values into cells: the update of a sketch in plain torch.

The key of a value is the layout of a float with gradual underflow, relative to the neuron's frame: with
`d = fl(x − c)`, the only rounding, `m = ceil(|d| 2^(p − e))` and `t = m + max(m, 2^p)`, the leading bits of the
float t number the cells on one side. All but d is exact, so the integers are the same on every device.

Only `torch.set_flush_denormal(True)` changes keys: where subnormals are flushed, sketches must not be made.

A unit is read in blocks of neurons, in tiles that fit a cache, and never transposed. What a tile needs is written
into the same few buffers over and over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch

from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.powers import power_of_two
from pipeline.sketch.sums import MomentSums
from pipeline.sketch.widening import farthest, wanted_exponent, widen

#: Rows and neurons of a tile by the kind of device: for a CPU what its second cache holds, for others what keeps
#: them busy. Moments are exact up to 512 rows in a tile.
TILES = {"cpu": (128, 1024)}
LARGE_TILE = (512, 1 << 14)


def update(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> None:
    """Counts values into a state, in place, on the state's device.

    Args:
        values: `[rows, neurons]`, any float dtype; float64 is rounded to float32 first.
        frame: The neurons' frame.
        grid: Their cells.
        state: What was counted so far.
    """
    rows, neurons = values.shape
    device = state.counts.device
    tile_rows, width = TILES.get(device.type, LARGE_TILE)
    tile_rows = min(tile_rows, rows)
    tile = _Tile.empty(tile_rows, min(width, neurons), device)
    for start in range(0, neurons if rows else 0, width):
        part = slice(start, min(start + width, neurons))
        block = values[:, part].detach().to(device, torch.float32)
        _update_block(block, frame[part].to(device), grid, state.neurons(part), tile.part(tile_rows, block.shape[1]))


@final
@dataclass(frozen=True)
class _Tile:
    """Buffers that the work on one tile is done in, `[rows, neurons]`.

    Args:
        distance: float32.
        scaled: float32.
        wide: float64, also lent as int64 and, one half of it, as float32.
        ones: int32, all 1.
        weights: float64, all 1, `[rows]`.
    """

    distance: torch.Tensor
    scaled: torch.Tensor
    wide: torch.Tensor
    ones: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def empty(cls, rows: int, neurons: int, device: torch.device) -> "_Tile":
        distance, scaled = torch.empty((2, rows, neurons), device=device)
        wide = torch.empty((rows, neurons), dtype=torch.float64, device=device)
        ones = torch.ones(rows * neurons, dtype=torch.int32, device=device)
        return cls(distance, scaled, wide, ones, torch.ones(rows, dtype=torch.float64, device=device))

    def part(self, rows: int, neurons: int) -> "_Tile":
        """Returns the buffers for a smaller tile, contiguous, in the same memory."""
        if self.distance.shape == (rows, neurons):
            return self
        size = rows * neurons
        buffers = (self.distance, self.scaled, self.wide)
        distance, scaled, wide = (buffer.view(-1)[:size].view(rows, neurons) for buffer in buffers)
        return _Tile(distance, scaled, wide, self.ones[:size], self.weights[:rows])

    @property
    def half(self) -> torch.Tensor:
        """The memory of `wide` as a float32 buffer."""
        shape = self.wide.shape
        return self.wide.view(torch.float32).view(-1)[: shape.numel()].view(shape)


def _update_block(block: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays, tile: _Tile) -> None:
    low, high = _extremes(block, tile)
    masked = None
    # Minimum and maximum pass NaN and infinities on, so that finite extremes say that all values are finite.
    if not bool((low.isfinite() & high.isfinite()).all()):
        finite = block.isfinite()
        masked = block.shape[0] - finite.sum(dim=0)
        _count_not_finite(block, state)
        low, high = (block.where(finite, end).aminmax(dim=0)[side] for side, end in enumerate((torch.inf, -torch.inf)))
        block = block.where(finite, frame.centre)
    # Adding 0 makes -0.0 to 0.0: which of the two is the smaller one would depend on the order.
    low, high = low + 0.0, high + 0.0
    distance = farthest(low, high, frame.centre)
    widen(state, frame.centre, wanted_exponent(distance, frame, grid), grid)
    torch.minimum(state.low, low, out=state.low)
    torch.maximum(state.high, high, out=state.high)
    _count(block, frame, grid, state, tile, distance)
    if masked is not None:
        # They stood at the centre in the meantime, where they added nothing to the moments.
        state.counts[:, grid.atom] -= masked.int()


def _extremes(block: torch.Tensor, tile: _Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the smallest and largest value of each neuron, `[neurons]`.

    Elementwise into two tiles and over their rows at the end: a reduction of every tile was seen to take far longer.
    """
    first, *others = _tiles(block, tile)
    low, high = tile.distance.copy_(first), tile.scaled.copy_(first)
    for values in others:
        rows = values.shape[0]
        torch.minimum(low[:rows], values, out=low[:rows])
        torch.maximum(high[:rows], values, out=high[:rows])
    return low.amin(dim=0), high.amax(dim=0)


def _count_not_finite(block: torch.Tensor, state: SketchArrays) -> None:
    state.nans.add_(block.isnan().sum(dim=0))
    state.plus_infs.add_((block == torch.inf).sum(dim=0))
    state.minus_infs.add_((block == -torch.inf).sum(dim=0))


def _count(
    block: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays, tile: _Tile, distance: torch.Tensor
) -> None:
    key = _Key.of(frame, grid, state)
    sums = MomentSums.start(distance, frame)
    for values in _tiles(block, tile):
        part = tile.part(*values.shape)
        # 0 − c instead of −c, and a sum: no distance is then −0.0, and its sign bit is its sign.
        torch.add(values, key.shift, out=part.distance)
        sums.add(part.distance, part.scaled, part.wide, part.weights)
        index = key.cells(part)
        key.counts.scatter_add_(0, index.view(-1), part.ones)
    sums.finish(block, frame, state)


def _tiles(block: torch.Tensor, tile: _Tile) -> Iterator[torch.Tensor]:
    return iter(torch.split(block, tile.distance.shape[0]))


@final
@dataclass(frozen=True)
class _Key:
    """What turns distances into places in the counts, fixed for a block.

    Args:
        grid: The cells.
        counts: The counts of the block as one axis, a view.
        shift: −centre, `[neurons]`, never −0.0.
        scale: `2^(precision − exponent)`, `[neurons]`.
        atoms: Place of each neuron's atom in `counts`, `[neurons]`, int32.
    """

    grid: Grid
    counts: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor
    atoms: torch.Tensor

    @classmethod
    def of(cls, frame: Frame, grid: Grid, state: SketchArrays) -> "_Key":
        counts = state.counts.view(-1)
        starts = torch.arange(frame.num_neurons, dtype=torch.int32, device=counts.device) * grid.num_cells
        scale = power_of_two(grid.precision - state.exponent)
        return cls(grid, counts, 0.0 - frame.centre, scale, starts + grid.atom)

    def cells(self, tile: _Tile) -> torch.Tensor:
        """Returns the places of a tile's distances, int64, in the buffer `wide`; the other buffers are used up."""
        precision = self.grid.precision
        # A value beyond the last edge, infinity among them, gets the first integer beyond it: cell H + 1. The lower
        # bound is for tiny distances that underflow to 0: they are not at the centre.
        last = float((1 << (self.grid.reach + precision)) + 1)
        steps = torch.mul(tile.distance, self.scale, out=tile.scaled).abs_().ceil_().clamp_(1.0, last)
        steps.add_(torch.clamp(steps, min=float(1 << precision), out=tile.half))
        bits = steps.view(torch.int32)
        one = _bits(float(1 << precision))
        bits.sub_(one - (1 << (23 - precision)) + 1).bitwise_right_shift_(23 - precision)
        sign = torch.sign(tile.distance.view(torch.int32), out=tile.half.view(torch.int32))
        return tile.wide.view(torch.int64).copy_(torch.addcmul(self.atoms, bits, sign, out=bits))


def _bits(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32))
