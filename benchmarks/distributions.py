"""Columns of samples of known shapes, hard ones among them: heavy tails, gaps, atoms, a mean far from 0."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from act.marginal import Marginal
from pipeline.sketch import Frame, Grid, HistogramSketch

Floats = NDArray[np.float32]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

#: Rows that give the frame of a column, as in a run.
PILOT = 256


def _gaussian(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return draw.standard_normal(shape, dtype=np.float32)


def _log_normal(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.exp(_gaussian(draw, shape))


def _laplace(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    size = draw.standard_exponential(shape, dtype=np.float32)
    return np.copysign(size, draw.random(shape, dtype=np.float32) - np.float32(0.5))


def _bimodal(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    mode = np.copysign(np.float32(3), draw.random(shape, dtype=np.float32) - np.float32(0.5))
    return mode + np.float32(0.5) * _gaussian(draw, shape)


def _student3(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    squares = np.float32(2) * draw.standard_gamma(1.5, shape, dtype=np.float32)
    return _gaussian(draw, shape) / np.sqrt(squares / np.float32(3))


def _relu(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.maximum(_gaussian(draw, shape) - np.float32(1.175), np.float32(0))


def _large_mean(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.float32(1e3) + np.float32(1e-2) * _gaussian(draw, shape)


#: How each shape is drawn.
SHAPES: Mapping[str, Draw] = {
    "Gaussian": _gaussian,
    "log-normal": _log_normal,
    "Laplace": _laplace,
    "bimodal": _bimodal,
    "Student t3": _student3,
    "ReLU, 88 % zeros": _relu,
    "1e3 ± 1e-2": _large_mean,
}

#: Shapes whose outermost quantiles move fast.
HEAVY = ("log-normal", "Student t3")


def columns(shape: str, num_samples: int, num_neurons: int, seed: int) -> torch.Tensor:
    """Returns samples of a shape, `[samples, neurons]`, float32, the same for every call."""
    draw = np.random.default_rng([seed, list(SHAPES).index(shape)])
    return torch.from_numpy(SHAPES[shape](draw, (num_samples, num_neurons)))


def sketched(samples: torch.Tensor, precision: int) -> HistogramSketch:
    """Returns the sketch of samples, `[samples, neurons]`, in the frame that their first rows give."""
    sketch = HistogramSketch.empty(Frame.from_pilot(samples[:PILOT]), Grid(precision))
    sketch.update(samples)
    return sketch


def sketched_law(samples: torch.Tensor, precision: int) -> Marginal:
    """Returns the law of that sketch."""
    return sketched(samples, precision).marginal()
