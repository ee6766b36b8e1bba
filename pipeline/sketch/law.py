"""From counts to the laws that maps are fitted to, with proven errors."""

from act.errors import EmptyMarginalError, NotFiniteError
from act.marginal import Marginal
from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.cells import Cells
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.moments import Moments


def law(frame: Frame, grid: Grid, state: SketchArrays) -> Marginal:
    """Returns the law of what was counted.

    The moments are the exact ones of the values rounded to their quantum. Where values were too far for these, or so
    many that the sums may have wrapped, they are those of the cells, and their errors say so.

    Raises:
        NotFiniteError: Some value was not finite.
        EmptyMarginalError: There are no samples.
    """
    masked = state.nans + state.plus_infs + state.minus_infs
    if bool(masked.any()):
        raise NotFiniteError("the sketch", int(masked.sum()), int(masked.nonzero()[0]))
    num_samples = int(state.counts[:1].sum())
    if not num_samples:
        raise EmptyMarginalError(frame.num_neurons)
    cells = Cells.occupied(frame, grid, state)
    moments = dict(Moments.of(frame, state, cells, num_samples).items())
    return Marginal.from_cells(cells.lows, cells.highs, cells.counts, **moments, edge_error=cells.edge_error)
