"""Laws of which only counts are kept, made from samples by a plain histogram that shares nothing with the sketch."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from act.marginal import Marginal

Floats = NDArray[np.float64]


def exact(samples: Floats) -> Marginal:
    """The law that keeps every sample; `[samples, neurons]`."""
    return Marginal.from_samples(torch.from_numpy(samples))


def binned(samples: Floats, edges: Sequence[Floats], spread_error: float = 0.0, edge_error: float = 0.0) -> Marginal:
    """The law of the cells that `edges` cut each column of the samples into.

    `spread_error` is how far the stated mean and deviation are off, and `edge_error` how far samples lie outside.
    """
    columns = [_cells(column, cuts) for column, cuts in zip(samples.T, edges, strict=True)]
    width = max(len(counts) for _, _, counts in columns)
    lows, highs = np.full((2, len(columns), width), np.nan)
    counts = np.zeros((len(columns), width), np.int64)
    for row, (low, high, count) in enumerate(columns):
        lows[row, : len(low)], highs[row, : len(low)], counts[row, : len(low)] = low, high, count
    # Column by column: NumPy's sums along the first axis depend on how many columns there are.
    mean, deviation = np.array([(np.mean(column), np.std(column)) for column in np.ascontiguousarray(samples.T)]).T
    everywhere = np.ones(len(columns))
    return Marginal.from_cells(
        torch.from_numpy(lows),
        torch.from_numpy(highs),
        torch.from_numpy(counts),
        mean=torch.from_numpy(mean + 0.9 * spread_error),
        variance=torch.from_numpy(np.maximum(deviation - 0.9 * spread_error, 0) ** 2),
        mean_error=torch.from_numpy(everywhere * spread_error),
        deviation_error=torch.from_numpy(everywhere * spread_error),
        edge_error=torch.from_numpy(everywhere * edge_error),
    )


def graded(column: Floats, per_octave: int) -> Floats:
    """Edges whose distance grows with that from the median, so many in each doubling, like a float's own grid."""
    centre = np.median(column)
    scale = np.median(np.abs(column - centre)) or np.ptp(column) or 1.0
    steps = np.arange(1, per_octave + 1) / per_octave
    octaves = [2.0**octave * (1 + steps) for octave in range(16)]
    side = scale / 2 * np.concatenate([[0.0], steps, *octaves])
    return np.unique(np.concatenate([centre - side, centre + side]))


def sketched(samples: Floats, per_octave: int = 32) -> Marginal:
    """The law of graded cells of each column."""
    return binned(samples, [graded(column, per_octave) for column in samples.T])


def _cells(column: Floats, edges: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    places, counts = np.unique(np.searchsorted(edges, column), return_counts=True)
    lows, highs = np.concatenate([[-np.inf], edges])[places], np.concatenate([edges, [np.inf]])[places]
    return lows.clip(column.min(), column.max()), highs.clip(column.min(), column.max()), counts
