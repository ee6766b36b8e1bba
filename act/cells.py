"""Cells: what is left of a neuron's samples when only counts are kept."""

from collections.abc import Sequence

import torch

from act.errors import CellsError, EmptyMarginalError, ShapeError


def cells_of_samples(
    lows: torch.Tensor, highs: torch.Tensor, counts: torch.Tensor, moments: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns counted cells with one more at either extreme, checked, as `act.marginal.Marginal` holds them.

    One sample lies exactly at the lower end of the first cell and one at the upper end of the last. Each gets a cell
    of no width, and the cell that it is taken from may be left with none.

    Args:
        lows: Lower end of each cell, `[neurons, cells]`.
        highs: Upper end of each cell, `[neurons, cells]`.
        counts: Samples in each cell, `[neurons, cells]`; cells after the last that holds some are padding.
        moments: Mean, variance and bounds on errors of each neuron, all `[neurons]`.

    Returns:
        Lower ends, upper ends and numbers of samples up to and with each cell, all `[neurons, cells + 2]`.

    Raises:
        ShapeError: The shapes do not belong together, or there are no neurons or cells.
        EmptyMarginalError: The cells hold no samples.
        CellsError: Some neuron's cells are no law.
    """
    _check_shapes(lows, highs, counts, moments)
    reached = counts.cumsum(dim=1)
    num_samples = reached[:, -1:]
    if not num_samples.any():
        raise EmptyMarginalError(len(counts))
    held = (reached - counts) < num_samples
    high = highs.gather(1, (held.sum(dim=1, keepdim=True) - 1).clamp(min=0))
    lows, highs = lows.where(held, high), highs.where(held, high)
    _check_counts(counts, num_samples[:, 0])
    _check_ends(lows, highs, num_samples[:, 0])
    _check_moments(torch.stack(list(moments)))
    inner = reached.minimum((num_samples - 1).clamp(min=1)).where(held, reached)
    ends = torch.cat([torch.ones_like(num_samples), inner, num_samples], dim=1)
    low = lows[:, :1]
    return torch.cat([low, lows, high], dim=1), torch.cat([low, highs, high], dim=1), ends


def _check_shapes(
    lows: torch.Tensor, highs: torch.Tensor, counts: torch.Tensor, moments: Sequence[torch.Tensor]
) -> None:
    if lows.ndim != 2 or not lows.numel():
        raise ShapeError("the tensor of cells", lows.shape, "two axes, [neurons, cells], with something in it")
    for part in (highs, counts):
        if part.shape != lows.shape:
            raise ShapeError("the tensor of cells", part.shape, f"that of their lower ends, {list(lows.shape)}")
    for part in moments:
        if part.shape != lows.shape[:1]:
            raise ShapeError("a moment of cells", part.shape, f"one axis with {len(lows)} neurons")


def _check_counts(counts: torch.Tensor, num_samples: torch.Tensor) -> None:
    _refuse("a cell with less than no samples", counts.amin(dim=1) < 0)
    _refuse("no samples in its first cell", counts[:, 0] < 1)
    _refuse("another number of samples than neuron 0", num_samples != num_samples[0])


def _check_ends(lows: torch.Tensor, highs: torch.Tensor, num_samples: torch.Tensor) -> None:
    _refuse("a cell that is not finite", ~((lows[:, 0] > -torch.inf) & (highs[:, -1] < torch.inf)))
    ordered = (lows <= highs).all(dim=1) & (highs[:, :-1] <= lows[:, 1:]).all(dim=1)
    _refuse("cells that overlap or are out of order", ~ordered)
    _refuse("one sample and two extremes", (num_samples == 1) & (lows[:, 0] < highs[:, -1]))


def _check_moments(moments: torch.Tensor) -> None:
    _refuse("a moment that is not finite", ~moments.isfinite().all(dim=0))
    _refuse("a variance or an error below 0", (moments[1:] < 0).any(dim=0))


def _refuse(problem: str, wrong: torch.Tensor) -> None:
    if wrong.any():
        raise CellsError(problem, int(wrong.nonzero()[0]))
