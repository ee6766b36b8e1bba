"""Draws rows by a hash of their place: the same rows for any batches, workers or machines."""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def lots(rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Returns a number for each row; the rows with the smallest ones are drawn.

    These are the outputs of SplitMix64 (Steele, Lea and Flood 2014, figure 16), started from the hashed seed, at the
    places of the rows. Different rows have different numbers.

    Args:
        rows: Places of rows in the canonical order, `[rows]`, not negative.
        seed: Any integer; its lowest 64 bits count.
    """
    start = _mixed(np.array([seed & _MASK], np.uint64))
    return _mixed(start + (rows.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
