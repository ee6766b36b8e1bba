"""The knots of the full monotone map, chosen so that the line through them is near to it.

The full map of two laws is the line through the points ``(Q_a(u), Q_b(u))``, with the quantiles that are linear
between order statistics, as in NumPy. Both are linear in `u` between the ends of the cells of either law, so finitely
many `u` give it whole. At a value that many source samples share it jumps, and takes the value of the largest `u`.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal, blocks
from act.transport import order

#: Knots at ``u = (1 - cos(π t)) / 2`` for even `t`: dense in the tails, where quantiles move fastest.
COSINE_KNOTS = 64

#: Knots of a neuron at most. Those that the cosine leaves are put where the line is worst: at atoms, gaps, outliers.
MOST_KNOTS = 96

#: Knots are added in rounds: half of those that are left, and at least so many.
_ADDED_AT_ONCE = 4

#: Order statistics of a law that keeps its samples among which knots are sought.
_MOST_RANKS = 1024
_GAPS, _ATOMS = 16, 8


def choose(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the knots of each neuron's map, x and y, both `[neurons, knots]`, float32.

    Knots ascend; neurons that need fewer repeat their last. The first and last stand at the extremes of both laws. A
    jump is a step between two neighbouring float32 numbers.
    """
    parts = []
    most = COSINE_KNOTS + 2 * sum(min(_MOST_RANKS, law.lows.shape[1]) for law in (source, target))
    for neurons in blocks(source.num_neurons, 2 * most):
        u, cosine = _levels(source, target, neurons)
        points = Points.of(order.quantile(source, neurons, u), order.quantile(target, neurons, u), cosine)
        parts.append(taken(_refined(points), points.x, points.y))
    width = max(x.shape[1] for x, _ in parts)
    xs, ys = (torch.cat([_padded(part[axis], width) for part in parts]) for axis in (0, 1))
    return xs, ys


def corners(law: Marginal, neurons: slice) -> torch.Tensor:
    """Returns the ranks between which a law's quantiles are linear in the rank, `[neurons or 1, ranks]`."""
    if law.is_exact:
        return torch.arange(law.num_samples, device=law.lows.device)[None]
    ends = order.ends_of(law, neurons)
    starts = (ends - order.counts_of(law, neurons)).clamp(max=law.num_samples - 1)
    return torch.stack([starts, (ends - 1).maximum(starts)], dim=2).flatten(1)


@final
@dataclass(frozen=True, eq=False)
class Points:
    """Points of the full map, ascending in both, `[neurons, points]`, float32; the last is repeated as padding.

    A jump has two: its bottom, just before it, and its top.

    Args:
        x: Where they are.
        y: What the map gives there.
        wanted: Those that are knots in any case, the first and the last place among them, bool.
    """

    x: torch.Tensor
    y: torch.Tensor
    wanted: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, wanted: torch.Tensor) -> "Points":
        """Returns the points of a line.

        Args:
            x: Ascending, `[neurons, levels]`.
            y: The same.
            wanted: Levels at which the map's value is to be a knot, the last among them, bool.
        """
        x, y = x.float(), y.float()
        first, last = ends_of_runs(x)
        tops = _following(last)
        below = x.nextafter(torch.full_like(x, -torch.inf))
        jumps = first & (y < y.gather(1, tops))
        # A jump's bottom stands just before it; there may be no float32 left between it and the point before.
        jumps[:, 1:] &= below[:, 1:] > x[:, :-1]
        jumps[:, 0] = False
        at_tops = torch.zeros_like(last).scatter_(1, tops.where(wanted, x.shape[1] - 1), value=True)
        # Padding repeats the last point; of all these the last place is the knot, and of a single point the first too.
        at_tops[:, -1] = False
        woven = (_woven(*pair) for pair in ((below, x), (y, y), (torch.zeros_like(last), at_tops)))
        xs, ys, knots = taken(_woven(jumps, last), *woven)
        knots[:, 0] = knots[:, -1] = True
        return cls(xs, ys, knots)


def taken(marked: torch.Tensor, *parts: torch.Tensor) -> list[torch.Tensor]:
    """Returns the marked ones of each part, `[neurons, several]`, the last place repeated where a neuron has fewer."""
    places = torch.arange(marked.shape[1], device=marked.device).where(marked, marked.shape[1] - 1)
    places = places.sort(dim=1).values[:, : int(marked.sum(dim=1).max())]
    return [part.gather(1, places) for part in parts]


def ends_of_runs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where runs of equal numbers begin and where they end, `[neurons, several]`, bool."""
    first = torch.ones_like(x, dtype=torch.bool)
    first[:, 1:] = x[:, 1:] > x[:, :-1]
    last = torch.ones_like(first)
    last[:, :-1] = first[:, 1:]
    return first, last


def _main_corners(law: Marginal, neurons: slice) -> torch.Tensor:
    """Returns the corners; of a law of many samples some, the denser the nearer to either end.

    Among them are the ends of the widest gaps between two samples, and of the largest runs of equal ones.
    """
    if not law.is_exact or law.num_samples <= _MOST_RANKS:
        return corners(law, neurons)
    samples = law.lows[neurons]
    ranks = (_cosine(_MOST_RANKS, samples.device) * (law.num_samples - 1)).round().long()
    gaps = samples.diff(dim=1).topk(_GAPS).indices
    first, last = ends_of_runs(samples)
    places = torch.arange(law.num_samples, device=samples.device)
    sizes = (places - places.where(first, 0).cummax(dim=1).values).where(last, 0)
    atoms = sizes.topk(_ATOMS)
    starts = atoms.indices - atoms.values
    return torch.cat([ranks.expand(len(gaps), -1), gaps, gaps + 1, starts, atoms.indices], dim=1)


def _levels(source: Marginal, target: Marginal, neurons: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns levels, ascending, and which of them are the cosine's, `[neurons, levels]`."""
    cosine = _cosine(COSINE_KNOTS, source.lows.device)[None]
    num = len(range(*neurons.indices(source.num_neurons)))
    others = [order.level(law, _main_corners(law, neurons)) for law in (source, target)]
    together = torch.cat([part.expand(num, -1) for part in (cosine, *others)], dim=1)
    levels, places = together.sort(dim=1, stable=True)
    # The last of the levels, 1, is the cosine's too; which of those equal to it came last does not matter.
    return levels, (places < COSINE_KNOTS) | (levels == 1)


def _cosine(num: int, device: torch.device) -> torch.Tensor:
    t = torch.linspace(0, math.pi, num, dtype=torch.float64, device=device)
    return (1 - t.cos()) / 2


def _refined(points: Points) -> torch.Tensor:
    """Returns which points are knots: the wanted ones and more, to `MOST_KNOTS`, where the line is worst.

    A round takes the worst points, each of another stretch between two knots.
    """
    marked = points.wanted
    ranks = torch.arange(MOST_KNOTS, device=marked.device)
    while True:
        worst, places = _worst(points, marked)
        # A stable sort of as many numbers whatever the other neurons are: no bit depends on these.
        found = worst.sort(dim=1, descending=True, stable=True)
        room = MOST_KNOTS - marked.sum(dim=1, keepdim=True)
        added = (found.values > 0) & (ranks < room.minimum((room // 2).clamp(min=_ADDED_AT_ONCE)))
        if not added.any():
            return marked
        chosen = places.gather(1, found.indices).where(added, marked.shape[1] - 1)
        marked = marked.scatter(1, chosen, value=True)


def _worst(points: Points, marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how far from the line the worst point of each stretch between two marks is, and its place.

    Both are `[neurons, MOST_KNOTS]`; where a stretch has no point, or all are met, the first is 0.
    """
    last = marked.shape[1] - 1
    places = torch.arange(last + 1, device=marked.device).expand(marked.shape)
    left, right = places.where(marked, 0).cummax(dim=1).values, _following(marked)
    start, width = points.x.gather(1, left), points.x.gather(1, right)
    width -= start
    weight = (points.x - start) / width.where(width > 0, 1.0)
    line = torch.lerp(points.y.gather(1, left), points.y.gather(1, right), weight)
    # Where float32 has no room for the width there is no line; such a neuron gets another map.
    distance = (line - points.y).abs().nan_to_num(nan=0.0).masked_fill(marked, 0.0)
    stretch = marked.cumsum(dim=1) - 1
    worst = distance.new_zeros(len(marked), MOST_KNOTS).scatter_reduce_(1, stretch, distance, "amax")
    first = places.where(distance == worst.gather(1, stretch), last)
    return worst, torch.full_like(worst, last, dtype=torch.int64).scatter_reduce_(1, stretch, first, "amin")


def _following(marked: torch.Tensor) -> torch.Tensor:
    """Returns the nearest marked place at or after each place, `[neurons, several]`; the last place is marked."""
    last = marked.shape[1] - 1
    places = torch.arange(last + 1, device=marked.device).where(marked, last)
    return places.flip(1).cummin(dim=1).values.flip(1)


def _woven(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.stack([left, right], dim=2).flatten(1)


def _padded(part: torch.Tensor, width: int) -> torch.Tensor:
    return torch.cat([part, part[:, -1:].expand(-1, width - part.shape[1])], dim=1)
