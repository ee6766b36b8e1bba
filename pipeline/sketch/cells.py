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
        edge_error: How far a sample lies outside its cell at most, `[neurons]`, float64.
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
        return cls(ends[0], ends[1], counts, _edge_error(frame, grid, state))


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
