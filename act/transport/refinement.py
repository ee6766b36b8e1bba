"""The common refinement: [0, 1] cut where either of two laws goes on to its next cell, and integrals over it."""

from dataclasses import dataclass
from math import lcm
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from act.errors import CountsError
from act.marginal import Marginal

#: Pieces of one block of neurons: its buffers, half a MiB each, then stay in the cache of one core.
PIECES = 1 << 16

#: Pieces are summed in groups of so many, and the groups one after the other.
GROUP = 64

#: Whole numbers of pieces lie below this: twice one, and which law it is of, still fit int64.
MAX_UNIT = 1 << 62

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Gaps:
    """Squared distances of two laws' quantile functions, ``∫ (z_a(u) - z_b(u))² du``, all `[neurons]`, float64.

    Args:
        between: That of the lines through the cells, each standardised by its own mean and deviation.
        nearest: The least of any samples in the cells, standardised by the moments that the laws state.
        farthest: The most of them.
        num_pieces: Number of terms in each sum that are not 0.
    """

    between: torch.Tensor
    nearest: torch.Tensor
    farthest: torch.Tensor
    num_pieces: torch.Tensor


def gaps(source: Marginal, target: Marginal) -> Gaps:
    """Returns how far two laws are from each other when both are standardised.

    A neuron's numbers do not depend on the other neurons of its laws, to the bit. A law without spread is one point
    at 0.

    Raises:
        CountsError: The numbers of samples have too large a common multiple.
    """
    unit = common_unit(source.num_samples, target.num_samples)
    if source.is_exact and target.is_exact:
        return _gaps_of_samples(source, target)
    width = sum(-(-law.lows.shape[1] // GROUP) * GROUP for law in (source, target))
    found = np.empty((4, source.num_neurons))
    step = max(1, PIECES // width)
    for start in range(0, source.num_neurons, step):
        neurons = slice(start, min(start + step, source.num_neurons))
        sides = _Side.of(source, neurons, unit), _Side.of(target, neurons, unit)
        found[:, neurons] = _gaps_of_cells(*sides, width, unit)
    return Gaps(*torch.from_numpy(found).to(source.lows.device))


def common_unit(num_source: int, num_target: int) -> int:
    """Returns into how many parts [0, 1] is cut so that either law's samples are whole numbers of them.

    Raises:
        CountsError: They are too many for int64.
    """
    unit = lcm(num_source, num_target)
    if unit >= MAX_UNIT:
        raise CountsError(num_source, num_target)
    return unit


def merged_steps(num_source: int, num_target: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the intervals of [0, 1] on which two step quantile functions are both constant.

    They lie between the points ``i / num_source`` and ``j / num_target`` together, ``n + m - gcd(n, m)`` intervals,
    found in whole numbers.

    Returns:
        The source sample, the target sample and the width of each interval, in order; the widths are whole multiples
        of ``1 / lcm(n, m)``.

    Raises:
        CountsError: That multiple does not fit int64.
    """
    unit = common_unit(num_source, num_target)
    step_source, step_target = unit // num_source, unit // num_target
    edges = torch.from_numpy(np.union1d(np.arange(0, unit + 1, step_source), np.arange(0, unit, step_target)))
    starts = edges[:-1]
    return starts // step_source, starts // step_target, edges.diff()


@final
@dataclass(frozen=True, eq=False)
class _Side:
    """One law of a block of neurons, all float64 `[neurons, cells]` but `ends`.

    Args:
        ends: Where each cell ends in [0, 1], int64, `[neurons or 1, cells]`, in parts of the common unit.
        offset: Value at 0 of the line through each cell, standardised by its own moments.
        slope: Slope of the line over [0, 1].
        centre: Middle of the range in which the samples of each cell lie, standardised by the stated moments.
        radius: Half of that range.
    """

    ends: Whole
    offset: Floats
    slope: Floats
    centre: Floats
    radius: Floats

    @classmethod
    def of(cls, law: Marginal, neurons: slice, unit: int) -> "_Side":
        low, high = _standardised(law, law.lows, neurons), _standardised(law, law.highs, neurons)
        ends = law.ends if len(law.ends) == 1 else law.ends[neurons]
        reached = _padded(ends.cpu().numpy(), law.num_samples)
        counts = np.diff(reached, axis=1, prepend=0).astype(np.float64)
        share = counts / law.num_samples
        middle, half = (low + high) * 0.5, (high - low) * 0.5
        offset = middle - _total(share, middle)[:, None]
        size = np.sqrt(_total(share, offset, offset) + _total(share, half, half) / 3)[:, None]
        scale = 1 / np.where(size > 0, size, 1)
        # A cell without samples has no slope, but no part of [0, 1] either in which it would matter.
        slope = half / np.maximum(counts, 1)
        slope *= 2 * law.num_samples * scale
        offset *= scale
        offset -= slope * ((reached - 0.5 * counts) / law.num_samples)
        if law.edge_error[neurons].any():
            middle, half = _reach(law, neurons, low, high)
        return cls(reached * (unit // law.num_samples), offset, slope, middle, half)


def _gaps_of_cells(source: _Side, target: _Side, width: int, unit: int) -> Floats:
    """Returns the four numbers of `Gaps`, `[4, neurons]`.

    The cells' ends are sorted together, each doubled, with a 1 added to the target's: so the low bit says whose it
    is, and the number of each law's ends before a place is the cell that it is in.
    """
    num_neurons, num_source = source.offset.shape
    num_target = target.offset.shape[1]
    keys = np.full((num_neurons, width), 2 * unit + 1)
    np.multiply(source.ends, 2, out=keys[:, :num_source])
    np.multiply(target.ends, 2, out=keys[:, num_source : num_source + num_target])
    keys[:, num_source : num_source + num_target] += 1
    keys.sort(axis=1)
    is_target = keys & 1
    keys >>= 1
    widths = np.diff(keys, axis=1, prepend=0) / unit
    middles = keys / unit - widths / 2
    rows = np.arange(num_neurons)[:, None]
    in_target = np.cumsum(is_target, axis=1)
    in_target -= is_target
    in_source = np.arange(width) - in_target
    # Behind the last end there are no more cells, but only pieces without width: any cell will do. NumPy's own way to
    # keep places within bounds, `mode="clip"`, takes twice the time of all else in a gather.
    for place, number in ((in_source, num_source), (in_target, num_target)):
        np.minimum(place, number - 1, out=place)
        place += rows * number
    offset = _gap("offset", source, in_source, target, in_target)
    slope = _gap("slope", source, in_source, target, in_target)
    middles *= slope
    middles += offset
    slope *= widths
    between = _total(widths, middles, middles) + _total(widths, slope, slope) / 12
    centre = _gap("centre", source, in_source, target, in_target)
    np.abs(centre, out=centre)
    radius = source.radius.take(in_source)
    radius += target.radius.take(in_target)
    farthest = np.add(centre, radius, out=middles)
    nearest = np.subtract(centre, radius, out=centre)
    np.maximum(nearest, 0, out=nearest)
    num_pieces = np.count_nonzero(widths, axis=1)
    return np.stack([between, _total(widths, nearest, nearest), _total(widths, farthest, farthest), num_pieces])


def _gap(name: str, source: _Side, in_source: Whole, target: _Side, in_target: Whole) -> Floats:
    gap: Floats = getattr(source, name).take(in_source)
    gap -= getattr(target, name).take(in_target)
    return gap


def _gaps_of_samples(source: Marginal, target: Marginal) -> Gaps:
    steps = merged_steps(source.num_samples, target.num_samples)
    left, right, widths = (_padded(part.numpy()[None], 0)[0] for part in steps)
    share = (widths / widths.sum())[None]
    between = np.empty(source.num_neurons)
    step = max(1, PIECES // len(widths))
    for start in range(0, source.num_neurons, step):
        neurons = slice(start, start + step)
        a, b = _standardised(source, source.lows, neurons), _standardised(target, target.lows, neurons)
        if source.num_samples != target.num_samples:
            a, b = a.take(left, axis=1), b.take(right, axis=1)
        a -= b
        between[neurons] = _total(share, a, a)
    found = torch.from_numpy(between).to(source.lows.device)
    return Gaps(found, found, found, torch.full_like(found, int(np.count_nonzero(widths))))


def _standardised(law: Marginal, values: torch.Tensor, neurons: slice) -> Floats:
    """Returns ``(values - m̂) / ŝ`` of each cell, with the moments that the law states, padded."""
    mean, deviation = (part[neurons, None].cpu().numpy() for part in (law.mean, law.deviation))
    standardised = _padded(values[neurons].cpu().numpy(), 0).astype(np.float64, copy=False)
    standardised -= mean
    standardised *= 1 / np.where(deviation > 0, deviation, 1)
    return standardised


def _reach(law: Marginal, neurons: slice, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Returns middle and half of the range in which each cell's samples lie, standardised as its ends are."""
    error, deviation = (part[neurons, None].cpu().numpy() for part in (law.edge_error, law.deviation))
    error = np.where(low < high, error / np.where(deviation > 0, deviation, 1), 0)
    least = np.maximum(low - error, low[:, :1])
    most = np.minimum(high + error, high[:, law.lows.shape[1] - 1, None])
    return (least + most) * 0.5, (most - least) * 0.5


def _padded(part: NDArray[Any], value: int) -> NDArray[Any]:
    """Returns rows that are filled up to whole groups, as a copy."""
    padded = np.full((len(part), -(-part.shape[1] // GROUP) * GROUP), value, part.dtype)
    padded[:, : part.shape[1]] = part
    return padded


def _total(weights: Floats, *factors: Floats) -> Floats:
    """Returns the sum over each row of the products, the same bits however many weights of 0 follow.

    Args:
        weights: `[neurons, pieces]`, or `[1, pieces]` for all neurons alike.
        factors: One or two of `[neurons, pieces]`. There are whole groups of pieces.
    """
    shape = (len(factors[0]), -1, GROUP)
    grouped = [part.reshape(shape) for part in (np.broadcast_to(weights, factors[0].shape), *factors)]
    of_group = np.einsum("ngk,ngk->ng" if len(factors) == 1 else "ngk,ngk,ngk->ng", *grouped)
    total: Floats = np.cumsum(of_group, axis=1)[:, -1]
    return total
