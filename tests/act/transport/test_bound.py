"""The proven errors: what cells leave open is more than what they get wrong, for many shapes and numbers of samples."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from act import transport
from act.marginal import Marginal
from act.transport.coupling import couple
from act.transport.linear import fit_linear
from tests.laws import binned, exact, graded, sketched, stated

METHODS = pytest.mark.parametrize("method", ["mean", "gaussian", "linear"])
SHAPES = {
    "normal": lambda g, n: g.normal(size=n),
    "uniform": lambda g, n: g.uniform(-3, 5, size=n),
    "exponential": lambda g, n: g.exponential(size=n),
    "lognormal": lambda g, n: g.lognormal(size=n),
    "laplace": lambda g, n: g.laplace(size=n),
    "bimodal": lambda g, n: g.normal(size=n) * 0.1 + 3 * g.integers(0, 2, size=n),
    "t3": lambda g, n: g.standard_t(3, size=n),
    "cauchy": lambda g, n: g.standard_cauchy(size=n),
    "relu": lambda g, n: np.maximum(g.normal(-1.2, size=n), 0),
    "offset": lambda g, n: 1e3 + 1e-2 * g.normal(size=n),
    "outliers": lambda g, n: g.normal(size=n) * np.where(g.random(n) < 0.01, 1e3, 1),
    "tiny": lambda g, n: 1e-30 * g.normal(size=n),
    "grid": lambda g, n: np.round(g.normal(size=n) * 16) / 16,
}
SMOOTH = ("normal", "exponential", "laplace", "lognormal")


@cache
def samples_of(num_samples: int, seed: int, names=tuple(SHAPES)) -> np.ndarray:
    """One shape a column, values that float32 holds, so that a map is asked for no others."""
    generator = np.random.default_rng(seed)
    columns = [SHAPES[name](generator, num_samples).astype(np.float32) for name in names]
    return np.stack(columns, axis=1).astype(np.float64)


@cache
def sides(num_source: int, num_target: int, seed: int) -> tuple[np.ndarray, np.ndarray, Marginal, Marginal]:
    """Samples of all shapes and samples of others, and the laws of their cells."""
    a, b = samples_of(num_source, seed), np.roll(samples_of(num_target, seed + 10), seed, axis=1)
    return a, b, sketched(a), sketched(b)


def true_line(method: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line of the samples, by plain NumPy; the source has `k` times as many as the target, or the other way."""
    count = max(len(a), len(b))
    x, y = (np.repeat(np.sort(s, axis=0), count // len(s), axis=0) for s in (a, b))
    middle, other = x[count // 2], y[count // 2]
    mean_x, mean_y = middle + (x - middle).mean(axis=0), other + (y - other).mean(axis=0)
    deviation_x, deviation_y = (x - mean_x).std(axis=0), (y - mean_y).std(axis=0)
    scale = {
        "mean": np.ones_like(mean_x),
        "gaussian": deviation_y / deviation_x,
        "linear": ((x - mean_x) * (y - mean_y)).mean(axis=0) / deviation_x**2,
    }[method]
    return scale, mean_y - scale * mean_x


def off_by(moved: transport.AbstractMap, line: tuple[np.ndarray, np.ndarray], samples: np.ndarray) -> np.ndarray:
    """How far a map is from a line at most, at samples inside its support."""
    x = torch.from_numpy(samples.astype(np.float32))
    distance = np.abs(moved(x).double().numpy() - (line[0] * samples + line[1]))
    inside = (x >= moved.low) & (x <= moved.high)
    return np.where(inside.numpy(), distance, 0).max(axis=0)


@METHODS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_source", "num_target"), [(100, 100), (100, 2000), (10_000, 1000), (100_000, 100_000)])
def test_a_map_from_cells_is_within_its_error(method: str, num_source: int, num_target: int, seed: int) -> None:
    a, b, *laws = sides(num_source, num_target, seed)
    moved = transport.fit(method, *laws)
    true = true_line(method, a, b)

    assert moved.error.isfinite().all()
    assert (off_by(moved, true, a) <= moved.error.numpy()).all()


@METHODS
@pytest.mark.parametrize("support", ["unbounded", (10.0, 60.0)])
@pytest.mark.parametrize("off", [(1e-3, 0.0), (0.0, 0.01), (0.05, -0.02), (-0.05, 0.02)])
@pytest.mark.parametrize("off_other", [(0.0, -0.01), (-0.03, 0.0), (0.03, 0.05)])
def test_it_is_so_for_other_supports_and_for_moments_that_are_off(method: str, support, off, off_other) -> None:
    names = ("normal", "exponential", "laplace", "bimodal", "grid", "uniform")
    a, b = samples_of(2000, 0, names), samples_of(1000, 1, names[::-1])
    laws = [
        stated(s, [graded(column, 16) for column in s.T], moments_off) for s, moments_off in ((a, off), (b, off_other))
    ]
    moved = transport.fit(method, *laws, support=support)

    assert (off_by(moved, true_line(method, a, b), a) <= moved.error.numpy()).all()
    # Nothing but the moments is off in these two, and the bound knows how much that can be.
    assert method == "linear" or (moved.error < 40 * np.abs([off, off_other]).max()).all()


@METHODS
def test_a_cell_for_each_sample_leaves_nothing_open_but_the_moments(method: str) -> None:
    """Whichever of the moments is off and in which direction, the error is about what it does, and no less."""
    a, b = samples_of(1000, 0, ("normal", "exponential")), samples_of(1000, 1, ("normal", "exponential"))
    for off in ((0.01, 0.0), (0.0, 0.01), (0.0, -0.01)):
        for offs in ((off, (0.0, 0.0)), ((0.0, 0.0), off)):
            laws = [stated(s, list(np.sort(s, axis=0).T), o) for s, o in zip((a, b), offs, strict=True)]
            moved = transport.fit(method, *laws)
            most = off_by(moved, true_line(method, a, b), a)

            assert (most <= moved.error.numpy()).all()
            assert method == "linear" or (moved.error.numpy() <= 1.1 * most + 1e-4).all()


@METHODS
def test_a_map_from_samples_is_off_by_float32_alone(method: str) -> None:
    a, b = samples_of(3000, 0), np.roll(samples_of(3000, 1), 1, axis=1)
    moved = transport.fit(method, exact(a), exact(b))
    scale, shift = true_line(method, a, b)
    size = scale * np.abs(a).max(axis=0) + np.abs(shift)

    assert (off_by(moved, (scale, shift), a) <= moved.error.numpy()).all()
    assert (moved.error.numpy() <= 2.0**-19 * size + 1e-40).all()


@pytest.mark.parametrize("exactly", ["source", "target"])
def test_one_law_of_samples_and_one_of_cells_give_a_narrower_bound(exactly: str) -> None:
    a, b = samples_of(2000, 0), np.roll(samples_of(1000, 1), 1, axis=1)
    laws = (exact(a), sketched(b)) if exactly == "source" else (sketched(a), exact(b))
    moved, both = transport.fit("linear", *laws), transport.fit("linear", sketched(a), sketched(b))

    assert (off_by(moved, true_line("linear", a, b), a) <= moved.error.numpy()).all()
    assert (moved.error <= both.error * (1 + 1e-6)).all()


#: Samples, and by how much their stated deviation is off. The extremes leave no room on the other side.
CONFINED = {
    "source wider than stated": (([0, 0, 1], -0.0632), ([0, 0.5, 1], 0.0)),
    "target wider than stated": (([0, 0, 1], 0.0), ([0, 0, 1], -0.0632)),
    "target narrower than stated": (([0, 0.5, 1], 0.0), ([0, 0.5, 1], 0.0918)),
    "source narrower than stated": (([0, 0.5, 1], 0.0918), ([0, 0.5, 1], 0.0)),
}


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("case", CONFINED)
def test_a_deviation_that_can_be_off_to_one_side_alone_is_reckoned_with(method: str, case: str) -> None:
    (a, off), (b, off_other) = ((np.array(x, float)[:, None], off) for x, off in CONFINED[case])
    edges = np.array([1e-12, 0.5 - 1e-12, 0.5, 1 - 1e-12])
    moved = transport.fit(method, stated(a, [edges], (0, off)), stated(b, [edges], (0, off_other)))
    most = off_by(moved, true_line(method, a, b), a)

    assert most > 0.05
    assert (most <= moved.error.numpy()).all()


def test_the_bound_is_of_use() -> None:
    """Of two normal laws, a map that is nowhere off by more than a hundredth of a deviation, and mostly by less."""
    generator = np.random.default_rng(0)
    for num_samples, most in ((100, 0.2), (1000, 0.05), (100_000, 0.01)):
        a, b = generator.normal(size=(num_samples, 20)), generator.normal(3, 2, size=(num_samples, 20))
        error = transport.fit("linear", sketched(a), sketched(b)).error.numpy() / b.std(axis=0)

        assert (error < most).all()


def test_finer_cells_narrow_the_bound() -> None:
    a, b = samples_of(20_000, 0, SMOOTH), samples_of(10_000, 1, SMOOTH)
    widths = []
    for per_octave in (4, 8, 16, 32, 64):
        found = couple(sketched(a, per_octave), sketched(b, per_octave))
        widths.append((found.highest - found.lowest).numpy())

    # Laws of one shape: nearly a quarter of the width for half the cell, until the samples themselves differ more.
    assert (widths[1] < 0.5 * widths[0]).all()
    assert all((finer < coarser).all() for coarser, finer in pairwise(widths))
    assert (widths[-1] < 2e-3).all()


def test_the_estimate_is_far_nearer_than_the_bound_says() -> None:
    a, b = samples_of(20_000, 0, SMOOTH), np.roll(samples_of(20_000, 1, SMOOTH), 1, axis=1)
    found, true = fit_linear(sketched(a), sketched(b)), fit_linear(exact(a), exact(b))

    assert ((found.scale - true.scale).abs() < found.slope_error / 10).all()


def test_a_bound_that_cells_cannot_give_is_wide_but_a_number() -> None:
    """One cell between two extremes: nothing is known but the moments and that the map does not descend."""
    a, b = (np.random.default_rng(seed).normal(size=(50, 5)) for seed in (0, 1))
    laws = [binned(samples, [np.empty(0)] * 5) for samples in (a, b)]
    moved = transport.fit("linear", *laws)

    assert (off_by(moved, true_line("linear", a, b), a) <= moved.error.numpy()).all()
    assert moved.error.isfinite().all()
