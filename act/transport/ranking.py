"""How well a neuron's activation tells source from target: two numbers that classification has for it.

The source is the positive class and the activation is the score. Samples are compared as whole numbers. Of cells the
estimates take samples at even distances, and the bounds hold wherever in its cell a sample is.
"""

from collections.abc import Callable

import torch

from act.marginal import Marginal, blocks
from act.transport import order

#: More than the rounding of a sum over all cells, each at most 1.
_ROUNDING = 2.0**-40

#: Takes two laws and some of their neurons, and returns something of each of these, `[neurons]`, float64.
_Of = Callable[[Marginal, Marginal, slice], torch.Tensor]


def auroc(source: Marginal, target: Marginal) -> torch.Tensor:
    """Returns ``P(a > b) + P(a = b) / 2`` of each neuron, `[neurons]`, float64, `a` from the source, `b` the target.

    That is the area under the receiver operating characteristic, and the Mann-Whitney U over both counts. For samples
    it is exact, ties included; for cells it is the area under the polyline through all ends of both laws' cells.
    """
    if source.is_exact and target.is_exact:
        return _by_block(source, target, _wins_of_samples)
    least, most = auroc_bounds(source, target)
    return _by_block(source, target, _area).maximum(least).minimum(most)


def auroc_bounds(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `auroc` of the samples is at least and at most, both `[neurons]`, float64.

    It rises with each sample of the source and falls with each of the target. So it is most when each cell of the
    source is an atom at its upper end and each of the target one at its lower end, and least the other way round.
    """
    if source.is_exact and target.is_exact:
        exact = auroc(source, target)
        return exact, exact
    least = _by_block(source, target, lambda a, b, neurons: _wins(a, b, neurons, (0, 1)))
    return least, _by_block(source, target, lambda a, b, neurons: _wins(a, b, neurons, (1, 0)))


def average_precision(source: Marginal, target: Marginal) -> torch.Tensor:
    """Returns the average precision of each neuron, `[neurons]`, float64.

    It is ``Σ (R_k - R_(k-1)) P_k`` over the distinct scores from the highest down, with recall `R_k` and precision
    `P_k` of "the activation is at least the k-th": the definition of scikit-learn's `average_precision_score`. Chance
    gives about ``n / (n + m)`` for `n` samples of the source and `m` of the target. For samples it is exact; for cells
    it is an estimate within `average_precision_bounds`.
    """
    if source.is_exact and target.is_exact:
        return _by_block(source, target, _precision)
    least, most = average_precision_bounds(source, target)
    return _by_block(source, target, _mean_precision).maximum(least).minimum(most)


def average_precision_bounds(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `average_precision` of the samples is at least and at most, both `[neurons]`, float64.

    It is the mean over the source of ``p / (p + q)``, where `p` samples of the source and `q` of the target are at
    least as high. In a cell `p` is no more than the samples that may reach its lower end. The j-th from the top of the
    cell has a `p` of at least `j` and the samples above the cell; as ``p / (p + q)`` is concave in `p`, its mean over a
    run of `p` is no less than that of the two ends.
    """
    if source.is_exact and target.is_exact:
        exact = average_precision(source, target)
        return exact, exact
    least = _by_block(source, target, _least_precision) - _ROUNDING
    return least.clamp(min=0), (_by_block(source, target, _most_precision) + _ROUNDING).clamp(max=1)


def _by_block(source: Marginal, target: Marginal, of: _Of) -> torch.Tensor:
    found = torch.empty_like(source.mean)
    # Four values a cell, two ends of either law's, are alive at once.
    for neurons in blocks(source.num_neurons, 2 * (source.lows.shape[1] + target.lows.shape[1])):
        found[neurons] = of(source, target, neurons)
    return found


def _wins_of_samples(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    """The area for samples: a whole number over ``2 n m``."""
    values, others = (law.lows[neurons].double().contiguous() for law in (source, target))
    below, upto = (torch.searchsorted(others, values, side=side) for side in ("left", "right"))
    return (below + upto).sum(dim=1).double() / (2 * source.num_samples * target.num_samples)


def _wins(source: Marginal, target: Marginal, neurons: slice, at: tuple[int, int]) -> torch.Tensor:
    """The same for atoms at the lower (0) or upper (1) ends of the cells of the source, and of the target."""
    values, others = source.reach(neurons)[at[0]], target.reach(neurons)[at[1]].contiguous()
    values = values.contiguous()
    below, upto = (
        order.before(order.ends_of(target, neurons), torch.searchsorted(others, values, side=s))
        for s in ("left", "right")
    )
    doubled = (order.counts_of(source, neurons) * (below + upto)).sum(dim=1)
    return doubled.double() / (2 * source.num_samples * target.num_samples)


def _precision(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    values, others = (law.lows[neurons].double().contiguous() for law in (source, target))
    right = source.num_samples - torch.searchsorted(values, values)
    wrong = target.num_samples - torch.searchsorted(others, values)
    return (right.double() / (right + wrong)).mean(dim=1)


def _most_precision(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    low, high = source.reach(neurons)
    right = _atleast(source, neurons, high, low)
    wrong = _atleast(target, neurons, target.reach(neurons)[0], high)
    return (order.counts_of(source, neurons) * right.double() / (right + wrong)).sum(dim=1) / source.num_samples


def _least_precision(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    low, high = source.reach(neurons)
    counts, above = order.counts_of(source, neurons), source.num_samples - order.ends_of(source, neurons)
    sure = _atleast(source, neurons, low, high)
    wrong = _atleast(target, neurons, target.reach(neurons)[1], low).double()
    first, last = torch.where(low < high, above + 1, sure).double(), torch.where(low < high, above + counts, sure)
    # Padding has no count, and may have nothing above it: 0 / 0.
    mean = (first / (first + wrong) + last / (last + wrong)) / 2
    return (counts * mean.where(counts > 0, 0.0)).sum(dim=1) / source.num_samples


def _area(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    (a_below, a_upto), (b_below, b_upto) = _shares(source, target, neurons)
    jumps = (a_upto - a_below) * (b_below + b_upto)
    rises = (a_below[:, 1:] - a_upto[:, :-1]) * (b_upto[:, :-1] + b_below[:, 1:])
    return (jumps.sum(dim=1) + rises.sum(dim=1)) / 2


def _mean_precision(source: Marginal, target: Marginal, neurons: slice) -> torch.Tensor:
    (a_below, a_upto), (b_below, b_upto) = _shares(source, target, neurons)

    def precision(a: torch.Tensor, b: torch.Tensor, itself: float) -> torch.Tensor:
        right, wrong = source.num_samples * (1 - a) + itself, target.num_samples * (1 - b)
        return right / (right + wrong).clamp(min=0.5)

    jumps = (a_upto - a_below) * precision(a_below, b_below, 0.0)
    middles = [(upto[:, :-1] + below[:, 1:]) / 2 for below, upto in ((a_below, a_upto), (b_below, b_upto))]
    # Half of the samples at even distances around a point are above it, and the one that is there counts itself.
    rises = (a_below[:, 1:] - a_upto[:, :-1]) * precision(middles[0], middles[1], 0.5)
    return jumps.sum(dim=1) + rises.sum(dim=1)


def _shares(source: Marginal, target: Marginal, neurons: slice) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns of either law the shares below and up to each end of a cell of both, `[neurons, ends]`, ascending."""
    ends = [part[neurons].double() for law in (source, target) for part in (law.lows, law.highs)]
    x = torch.cat(ends, dim=1).sort(dim=1).values
    return [(_share(law, neurons, x, "left"), _share(law, neurons, x, "right")) for law in (source, target)]


def _share(law: Marginal, neurons: slice, x: torch.Tensor, side: str) -> torch.Tensor:
    lows, highs = law.lows[neurons].double(), law.highs[neurons].double()
    cells = torch.searchsorted(highs, x, side=side)
    before = order.before(order.ends_of(law, neurons), cells)
    cells = cells.clamp(max=highs.shape[1] - 1)
    low, high = lows.gather(1, cells), highs.gather(1, cells)
    part = ((x - low) / (high - low)).clamp(0, 1).where(low < high, 0.0)
    return (before + part * order.counts_of(law, neurons).gather(1, cells)) / law.num_samples


def _atleast(law: Marginal, neurons: slice, ends: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns how many samples of a law lie in cells whose end is at least each value, `[neurons, values]`, int64."""
    return law.num_samples - order.before(
        order.ends_of(law, neurons), torch.searchsorted(ends.contiguous(), values.contiguous())
    )
