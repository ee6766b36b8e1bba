"""Columns of values that are hard to sketch, one kind beside the other."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _outliers(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(size=rows) * np.where(rng.random(rows) < 0.05, 1e5, 1.0)


def _sprinkled(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.where(rng.random(rows) < 0.3, rng.choice([np.nan, np.inf, -np.inf], rows), rng.normal(size=rows))


def _bits(rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.integers(0, 1 << 32, rows, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0.0))


#: Finite columns by the name of their kind; each gives float values of `rows` samples.
KINDS: dict[str, Draw] = {
    "gaussian": lambda rng, rows: rng.normal(size=rows),
    "heavy": lambda rng, rows: rng.standard_t(1.2, size=rows),
    "mostly zero": lambda rng, rows: np.maximum(rng.normal(size=rows) - 1.2, 0.0),
    "dead": lambda _, rows: np.zeros(rows),
    "constant": lambda _, rows: np.full(rows, 1 / 3),
    "two values": lambda rng, rows: rng.choice([1.0, 2.0], rows),
    "zeros of both signs": lambda rng, rows: rng.choice([0.0, -0.0], rows),
    "far from zero": lambda rng, rows: 1e3 + 1e-2 * rng.normal(size=rows),
    "outliers": _outliers,
    "on a grid": lambda rng, rows: np.round(64 * rng.normal(size=rows)) / 64,
    "huge": lambda rng, rows: 1e37 * rng.normal(size=rows),
    "tiny": lambda rng, rows: 1e-38 * rng.normal(size=rows),
    "subnormal": lambda rng, rows: 1e-43 * rng.normal(size=rows),
    "all scales": lambda rng, rows: rng.normal(size=rows) * 2.0 ** rng.integers(-120, 120, rows),
    "dead, then alive": lambda rng, rows: rng.normal(size=rows) * (np.arange(rows) > rows // 2),
    "dead, then huge": lambda rng, rows: 1e30 * rng.normal(size=rows) * (np.arange(rows) > rows // 2),
    "scale that grows": lambda rng, rows: rng.normal(size=rows) * 2.0 ** np.linspace(0, 30, rows),
    "any bits": _bits,
}

#: The same, and columns with values that are not finite.
ALL_KINDS: dict[str, Draw] = {
    **KINDS,
    "not finite": lambda rng, rows: rng.choice([np.nan, np.inf, -np.inf], rows),
    "some not finite": _sprinkled,
}


def columns(rows: int, seed: int, kinds: dict[str, Draw] = KINDS) -> torch.Tensor:
    """One column of each kind, `[rows, kinds]`, float32."""
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore", under="ignore"):
        drawn = [np.asarray(draw(rng, rows)).astype(np.float32) for draw in kinds.values()]
    return torch.from_numpy(np.stack(drawn, axis=1)) if rows else torch.empty(0, len(kinds))


def samples(min_rows: int = 0, max_rows: int = 60, kinds: dict[str, Draw] = KINDS) -> st.SearchStrategy[torch.Tensor]:
    """A column of each kind, of any number of rows."""
    seeds = st.integers(0, 2**32 - 1)
    return st.builds(lambda rows, seed: columns(rows, seed, kinds), st.integers(min_rows, max_rows), seeds)
