"""The occupied cells of a sketch, in the units of the values."""

from dataclasses import dataclass
from typing import final

import torch

from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.powers import wide_power_of_two

#: Rounding of one operation, relative: float32, of which a key needs one, and float64.
ROUNDOFF, ROUNDOFF64 = 2.0**-24, 2.0**-53


@final
@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of each neuron that hold samples, ascending, padded to the most that a neuron has.

    Args:
        lows: Lower ends, `[neurons, cells]`, float64, at least the smallest sample.
        highs: Upper ends, `[neurons, cells]`, float64, at most the largest sample. Padding lies there.
        counts: Samples in each cell, `[neurons, cells]`, int64; 0 in the padding.
        edge_error: How far a sample lies outside a cell that has width at most, `[neurons]`, float64. The atom and an
            extreme have none, and what lies in them is exactly there.
    """

    lows: torch.Tensor
    highs: torch.Tensor
    counts: torch.Tensor
    edge_error: torch.Tensor

    @classmethod
    def occupied(cls, frame: Frame, grid: Grid, state: SketchArrays) -> "Cells":
        """Returns the cells that hold samples of a state in which every neuron has some."""
        numbers, counts = _compressed(state.counts)
        scale = wide_power_of_two(state.exponent)
        # One more end, for padding, lies beyond all others.
        tables = (torch.nn.functional.pad(end, (0, 1), value=torch.inf).to(numbers.device) for end in grid.cell_ends())
        ends = [table.index_select(0, numbers.view(-1)).view(numbers.shape) for table in tables]
        centre, low, high = (vector.double()[:, None] for vector in (frame.centre, state.low, state.high))
        for end in ends:
            # In place, on the way from units of the scale to values. The open ends reach to the extremes.
            end.mul_(scale[:, None]).add_(centre).clamp_(low, high)
        lows, highs = ends
        return cls(*_with_width(lows, highs, counts, numbers != grid.atom, _edge_error(frame, grid, state)))


def _compressed(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the numbers of the cells that hold something, and what they hold, both `[neurons, cells]`, int64.

    The number of a padding cell is one more than the last cell's.
    """
    held = counts != 0
    each = held.sum(dim=1, keepdim=True)
    filled = torch.arange(int(each.max()), device=counts.device) < each
    numbers = torch.full(filled.shape, counts.shape[1], device=counts.device)
    # Both masks are read row by row, and a row of the one has as many places as that of the other.
    numbers.masked_scatter_(filled, held.nonzero()[:, 1])
    return numbers, torch.nn.functional.pad(counts, (0, 1)).gather(1, numbers).long()


def _with_width(
    lows: torch.Tensor, highs: torch.Tensor, counts: torch.Tensor, wide: torch.Tensor, edge_error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ends in which no cell but an atom is without width, the counts, and the edge error.

    Where an extreme is the far end of its own cell, clipping leaves a point, though rounding may have put other values
    there too. The cell gets the width of the edge error, from its neighbour where that is adjacent; so a sample of the
    neighbour may lie outside of it by as much more.

    Args:
        lows: Lower ends, `[neurons, cells]`; written to.
        highs: Upper ends, `[neurons, cells]`; written to.
        counts: Samples in each cell, `[neurons, cells]`.
        wide: Which cells are no atoms, `[neurons, cells]`, bool.
        edge_error: What it is without this, `[neurons]`.
    """
    last = (counts > 0).sum(dim=1) - 1
    spread = highs.gather(1, last[:, None])[:, 0] - lows[:, 0]
    width = edge_error.minimum(spread / 4)
    for places, sign in ((torch.zeros_like(last), 1), (last, -1)):
        flat = ((lows == highs) & (counts > 1) & wide).gather(1, places[:, None])[:, 0] & (spread > 0)
        rows = flat.nonzero()[:, 0]
        if not len(rows):
            continue
        here, beside = places[rows], (places[rows] + sign).clamp(0, lows.shape[1] - 1)
        far, near = (highs, lows) if sign > 0 else (lows, highs)
        moved = far[rows, here] + sign * width[rows]
        nearest = torch.maximum if sign > 0 else torch.minimum
        far[rows, here] = moved
        for end in (near, far):
            end[rows, beside] = nearest(end[rows, beside], moved)
        edge_error = edge_error.where(~flat, 2 * edge_error)
    return lows, highs, counts, edge_error


def _edge_error(frame: Frame, grid: Grid, state: SketchArrays) -> torch.Tensor:
    """Returns how far a sample lies outside its cell at most, `[neurons]`, float64.

    The key rounds `x − c` once, by a factor within `1 ± 2^−24`, and cells beyond the last edge end at an extreme. The
    ends themselves are rounded in float64. Where all samples are at the centre nothing is rounded.
    """
    centre, low, high = (vector.double() for vector in (frame.centre, state.low, state.high))
    distance = torch.maximum(high - centre, centre - low)
    edge = wide_power_of_two(state.exponent + grid.reach)
    size = torch.minimum(distance, edge)
    slack = 8 * ROUNDOFF64 * (size + centre.abs())
    return torch.where(distance > 0, ROUNDOFF * (1 + 2 * ROUNDOFF) * size + slack, 0.0)
