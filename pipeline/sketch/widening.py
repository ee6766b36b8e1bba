"""How the scale of a neuron's cells grows until its values have room."""

from collections.abc import Sequence

import torch

from pipeline.sketch.arrays import MIN_EXPONENT, SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.sums import add_sums

#: Neurons that are coarsened at once: few enough for a cache.
BLOCK = 256


def farthest(low: torch.Tensor, high: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Returns the largest `|fl(x − centre)|` of values between the extremes, float32; 0 where there are none."""
    distance = torch.maximum((high - centre).abs(), (low - centre).abs())
    return distance.where(low <= high, 0.0)


def wanted_exponent(distance: torch.Tensor, frame: Frame, grid: Grid) -> torch.Tensor:
    """Returns the smallest exponent of the frame whose bounded cells reach a distance, or its widest, `[neurons]`.

    By frexp: a float32 logarithm rounds up just below powers of two.
    """
    mantissa, exponent = torch.frexp(distance)
    need = exponent - (mantissa == 0.5).int() - grid.reach
    need = need.where(distance > 0, MIN_EXPONENT).where(distance.isfinite(), frame.widest)
    return torch.minimum(torch.maximum(need, frame.exponent), frame.widest)


def widen(state: SketchArrays, centre: torch.Tensor, exponent: torch.Tensor, grid: Grid) -> None:
    """Coarsens the counts of the neurons whose exponent is less than another, in place."""
    behind = exponent - state.exponent
    for places in _moving(state, centre, behind):
        state.counts[places] = _coarsened(state.counts[places], behind[places], grid)
    torch.maximum(state.exponent, exponent, out=state.exponent)


def fold(mine: SketchArrays, theirs: SketchArrays, centre: torch.Tensor, grid: Grid) -> None:
    """Adds one state to another of the same frame, in place."""
    exponent = torch.maximum(mine.exponent, theirs.exponent)
    widen(mine, centre, exponent, grid)
    behind = exponent - theirs.exponent
    # One addition over all counts, which is bound by memory; then the few that it added at too fine a scale.
    mine.counts.add_(theirs.counts)
    for places in _moving(theirs, centre, behind):
        # Read, changed and written back, as no place occurs twice: index_add_ was seen to take twice as long.
        fine = theirs.counts.index_select(0, places)
        counts = mine.counts.index_select(0, places).sub_(fine).add_(_coarsened(fine, behind[places], grid))
        mine.counts.index_copy_(0, places, counts)
    torch.minimum(mine.low, theirs.low, out=mine.low)
    torch.maximum(mine.high, theirs.high, out=mine.high)
    add_sums(mine, torch.stack([theirs.first, theirs.second_high, theirs.second_low]))
    for name in ("nans", "plus_infs", "minus_infs", "far"):
        getattr(mine, name).add_(getattr(theirs, name))


def _moving(state: SketchArrays, centre: torch.Tensor, behind: torch.Tensor) -> Sequence[torch.Tensor]:
    """Returns the places of neurons whose counts change when their exponent grows by `behind`, a block at a time.

    Nothing but the atom, or nothing at all, is the same at every scale: a dead neuron need not step through them.
    """
    atom = (state.low == centre) & (state.high == centre)
    places = ((behind > 0) & (state.low <= state.high) & ~atom).nonzero()[:, 0]
    return torch.split(places, BLOCK) if len(places) else ()


def _coarsened(counts: torch.Tensor, times: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns counts, `[neurons, num_cells]`, after as many doublings of each neuron's scale: a new tensor."""
    for step in range(int(times.max())):
        late = times > step
        coarse = grid.coarsen(counts)
        # Usually all of a block are as far behind; where not, some keep what they have.
        counts = coarse if bool(late.all()) else coarse.where(late[:, None], counts)
    return counts
