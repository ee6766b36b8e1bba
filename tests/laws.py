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
    return stated(samples, edges, (spread_error, -spread_error), edge_error)


def stated(
    samples: Floats,
    edges: Sequence[Floats],
    moments_off: tuple[float, float] = (0.0, 0.0),
    edge_error: float = 0.0,
    moments_of: Floats | None = None,
) -> Marginal:
    """The law of cells whose moments are stated wrongly.

    `moments_off` is by how much the stated mean and deviation are off, and what their stated errors are no less than;
    `edge_error` is stated; `moments_of` are the samples whose moments are meant, if they are others.
    """
    columns = [_cells(column, cuts) for column, cuts in zip(samples.T, edges, strict=True)]
    width = max(len(counts) for _, _, counts in columns)
    lows, highs = np.full((2, len(columns), width), np.nan)
    counts = np.zeros((len(columns), width), np.int64)
    for row, (low, high, count) in enumerate(columns):
        lows[row, : len(low)], highs[row, : len(low)], counts[row, : len(low)] = low, high, count
    return Marginal.from_cells(
        torch.from_numpy(lows),
        torch.from_numpy(highs),
        torch.from_numpy(counts),
        **_moments(samples if moments_of is None else moments_of, *moments_off),
        edge_error=torch.full((len(columns),), edge_error, dtype=torch.float64),
    )


def moved_inside(samples: Floats, law: Marginal, error: float, seed: int = 0) -> Floats:
    """The samples in order, each moved by up to `error`: none of an atom, and none past one; `[samples, 1]`."""
    ordered = np.sort(samples[:, 0])
    cells = np.searchsorted(law.ends[0].numpy(), np.arange(len(ordered)), side="right")
    atoms = (law.lows == law.highs)[0].numpy()[cells]
    moved = ordered + np.where(atoms, 0, np.random.default_rng(seed).uniform(-error, error, len(ordered)))
    least = np.maximum.accumulate(np.where(atoms, ordered, -np.inf))
    most = np.minimum.accumulate(np.where(atoms, ordered, np.inf)[::-1])[::-1]
    return np.sort(moved.clip(least, most))[:, None]


def _moments(samples: Floats, mean_off: float, deviation_off: float) -> dict[str, torch.Tensor]:
    # Column by column: NumPy's sums along the first axis depend on how many columns there are.
    mean, deviation = np.array([(np.mean(column), np.std(column)) for column in np.ascontiguousarray(samples.T)]).T
    stated = np.maximum(deviation + deviation_off, 0)
    error = np.ones_like(mean) * (1 + 1e-9)
    values = {
        "mean": mean + mean_off,
        "variance": stated**2,
        "mean_error": error * abs(mean_off),
        "deviation_error": error * abs(deviation_off),
    }
    return {name: torch.from_numpy(value) for name, value in values.items()}


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
