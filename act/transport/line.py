"""The line through a neuron's knots, and how far it is from the full monotone map."""

import torch

from act.marginal import Marginal, blocks
from act.transport import order
from act.transport.affine import upward
from act.transport.knots import corners


def search(knots_x: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the place of the last knot that is not above each `x`, the first if all are, `[neurons, several]`, int64.

    All values are searched for in step, by halves with gathers: on a CPU that was seen to take half the time of
    `torch.searchsorted` on values in no order, and twice its time on ascending ones.

    Args:
        knots_x: Ascending, `[neurons, knots]`, in the dtype of `x`.
        x: `[neurons, several]`.
    """
    place, length = torch.zeros_like(x, dtype=torch.int64), knots_x.shape[1]
    while length > 1:
        half = length // 2
        place.add_(knots_x.gather(1, place + half) <= x, alpha=half)
        length -= half
    return place


def line_at(knots_x: torch.Tensor, knots_y: torch.Tensor, x: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Returns the line through each neuron's knots at `x`, `[neurons, several]`; beyond the outermost its slope is 1.

    Where knots share an `x` the last of them counts. Nothing finite gives NaN.

    Args:
        knots_x: Ascending, `[neurons, knots]`, in the dtype of `x`; the distance between the outermost is finite.
        knots_y: The same, in any order.
        x: `[neurons, several]`.
        left: What `search` returned.
    """
    right = (left + 1).clamp_(max=knots_x.shape[1] - 1)
    start = knots_x.gather(1, left)
    width = knots_x.gather(1, right) - start
    within = x.maximum(knots_x[:, :1]).minimum(knots_x[:, -1:])
    weight = (within - start) / width.where(width > 0, 1.0)
    return torch.lerp(knots_y.gather(1, left), knots_y.gather(1, right), weight) + (x - within)


def line_error(source: Marginal, target: Marginal, knots_x: torch.Tensor, knots_y: torch.Tensor) -> torch.Tensor:
    """Returns how far the line through knots is from the full map of the samples at most, `[neurons]`, float64.

    It holds for every float32 activation between the extremes of the source. Of samples it is the largest distance at
    the corners of either line. Of cells it is a bound: the rank of an activation among the source lies between counts,
    so the map lies between the order statistics of the target at these ranks; and as line and map ascend, between two
    points neither leaves the range of its ends.
    """
    exact = source.is_exact and target.is_exact
    error = torch.empty_like(source.mean)
    for neurons in blocks(source.num_neurons, 4 * (source.lows.shape[1] + target.lows.shape[1] + knots_x.shape[1])):
        x, y = knots_x[neurons].double(), knots_y[neurons].double()
        of = _corner_error if exact else _step_error
        error[neurons] = of(source, target, neurons, x, y)
    return error


def _corner_error(
    source: Marginal, target: Marginal, neurons: slice, knots_x: torch.Tensor, knots_y: torch.Tensor
) -> torch.Tensor:
    levels = [order.level(law, corners(law, neurons)).expand(len(knots_x), -1) for law in (source, target)]
    u = torch.cat(levels, dim=1).sort(dim=1).values
    x, y = order.quantile(source, neurons, u), order.quantile(target, neurons, u)
    # Between two corners both are lines, so their outermost float32 numbers decide; at a corner the map may jump.
    points = torch.cat([_below(x), _atleast(x), knots_x], dim=1)
    points = points.maximum(x[:, :1]).minimum(x[:, -1:])
    return (_interpolate(knots_x, knots_y, points) - _interpolate(x, y, points)).abs().amax(dim=1)


def _step_error(
    source: Marginal, target: Marginal, neurons: slice, knots_x: torch.Tensor, knots_y: torch.Tensor
) -> torch.Tensor:
    lows, highs = (part.contiguous() for part in source.reach(neurons))
    grid = torch.cat([lows, highs, knots_x], dim=1).maximum(lows[:, :1]).minimum(highs[:, -1:]).sort(dim=1).values
    # From each point to the last float32 before the next; the last point is alone.
    ends = torch.cat([_below(grid[:, 1:]), grid[:, -1:]], dim=1)
    least, most = map_bounds(source, target, neurons, (grid, ends))
    above = _interpolate(knots_x, knots_y, ends) - least
    below = most - _interpolate(knots_x, knots_y, grid)
    return above.maximum(below).amax(dim=1).clamp(min=0)


def _interpolate(knots_x: torch.Tensor, knots_y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the line through knots at `x` in runs that ascend, `[neurons, several]`."""
    left = torch.searchsorted(knots_x, x, right=True).sub_(1).clamp_(min=0)
    return line_at(knots_x, knots_y, x, left)


def map_bounds(
    source: Marginal, target: Marginal, neurons: slice, at: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the full map of the samples is at least at one set of points, and at most at another.

    With `c` samples up to `x` its rank is at least ``c - 1`` and less than `c`; the target's rank is that times
    ``(m - 1) / (n - 1)``, in whole numbers.
    """
    ends, steps = order.ends_of(source, neurons), max(1, source.num_samples - 1)
    lows, highs = (part.contiguous() for part in source.reach(neurons))
    surely = order.before(ends, torch.searchsorted(highs, at[0], right=True))
    maybe = order.before(ends, torch.searchsorted(lows, at[1], right=True))
    least = (surely - 1).clamp(min=0) * (target.num_samples - 1) // steps
    most = -(-maybe.clamp(max=steps) * (target.num_samples - 1) // steps)
    cells = [order.cell_of(order.ends_of(target, neurons), ranks) for ranks in (least, most)]
    reach = target.reach(neurons)
    return reach[0].gather(1, cells[0]), reach[1].gather(1, cells[1])


def _below(x: torch.Tensor) -> torch.Tensor:
    """Returns the largest float32 below each number, float64."""
    rounded = x.float()
    below = rounded.nextafter(torch.full_like(rounded, -torch.inf))
    return torch.where(rounded < x, rounded, below).double()


def _atleast(x: torch.Tensor) -> torch.Tensor:
    """Returns the smallest float32 that is not below each number, float64."""
    return upward(x).double()
