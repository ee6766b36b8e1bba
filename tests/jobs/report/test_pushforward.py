"""The law of ``T(a)``, against NumPy on the samples themselves and on many points spread over the cells."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.marginal import Marginal
from act.transport import AbstractMap, TransportMap, fit
from jobs.report.pushforward import Pushforward, Values, corners
from tests.laws import exact, sketched

PROBS = np.array([0.0, 0.005, 0.3, 0.5, 0.75, 0.995, 1.0])

#: Samples that collide and that do not, around the ends of supports and the edges of bins.
numbers = st.one_of(st.integers(-4, 4).map(float), st.floats(-5, 5, width=32))
columns = st.lists(numbers, min_size=2, max_size=40).filter(lambda column: min(column) < max(column))
ends = st.tuples(numbers, numbers).map(sorted) | st.just([-np.inf, np.inf])


def line(scale: float, shift: float, low: float = -np.inf, high: float = np.inf) -> TransportMap:
    return TransportMap(*(torch.tensor([part]) for part in (scale, shift, low, high)))


def kept(column: list[float]) -> Marginal:
    """A law of float32 samples, as stored activations are."""
    return Marginal.from_samples(torch.tensor(column, dtype=torch.float32)[:, None])


def check_is_numpys(law: Marginal, transport: AbstractMap) -> None:
    moved = transport(law.lows.t())[:, 0].double().numpy()
    found = Pushforward.of(law, transport)
    edges = np.linspace(-6, 6, 13)
    wanted = np.histogram(moved, [*edges, np.inf])[0][:-1] / len(moved)  # NumPy's last bin has both its edges
    np.testing.assert_allclose(found.shares(edges), wanted, atol=1e-12)
    np.testing.assert_allclose(found.quantile(PROBS), np.quantile(moved, PROBS), rtol=1e-9, atol=1e-9)
    assert found.mean == pytest.approx(moved.mean(), rel=1e-5, abs=1e-6)


@given(columns, ends, st.floats(0, 3, width=16), st.floats(-3, 3, width=16))
def test_of_samples_it_is_the_law_of_the_moved_samples(column, support, scale, shift):
    check_is_numpys(kept(column), line(scale, shift, *support))


@given(columns, columns, st.sampled_from(["observed", "unbounded", (10.0, 80.0)]))
def test_of_samples_and_knots_too(column, target, support):
    law = kept(column)
    check_is_numpys(law, fit("quantile", law, kept(target), support=support))


@given(columns)
def test_the_identity_leaves_a_law_of_cells_as_it_is(column):
    law = sketched(np.array(column)[:, None], per_octave=2)
    found = Pushforward.of(law, line(1, 0))
    edges = np.linspace(-5, 5, 21)
    reached = law.cdf_below(torch.from_numpy(edges)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found.shares(edges), np.diff(reached), atol=1e-12)
    wanted = law.quantile(torch.from_numpy(PROBS))[:, 0].numpy()
    np.testing.assert_allclose(found.quantile(PROBS), wanted, atol=1e-6)
    assert found.mean == pytest.approx(float(law.mean[0]))


def spread(law: Marginal, points: int) -> tuple[Values, Values]:
    """Many points of equal share in each cell, and their shares."""
    counts = np.diff(law.ends[0].numpy(), prepend=0)
    places = (np.arange(points) + 0.5) / points
    lows, highs = law.lows[0].numpy(), law.highs[0].numpy()
    values = lows[:, None] + (highs - lows)[:, None] * places
    return values.ravel(), np.repeat(counts / points / law.num_samples, points)


@pytest.mark.parametrize("method", ["linear", "quantile"])
@pytest.mark.parametrize("support", ["observed", "unbounded", (20.0, 70.0)])
def test_of_cells_it_is_what_becomes_of_points_all_over_them(method, support):
    generator = np.random.default_rng(3)
    source = sketched(np.concatenate([np.zeros(40), generator.normal(size=160)])[:, None], per_octave=2)
    target = sketched(generator.exponential(size=(150, 1)) + 2, per_octave=2)
    transport = fit(method, source, target, support=support)
    values, weights = spread(source, 4000)
    moved = transport(torch.from_numpy(values)[:, None])[:, 0].numpy()
    found = Pushforward.of(source, transport)
    edges = np.linspace(-4.05, 8.05, 41)
    np.testing.assert_allclose(found.shares(edges), np.histogram(moved, edges, weights=weights)[0], atol=1e-3)
    assert found.shares(np.array([-100.0, 100.0]))[0] == pytest.approx(1)
    order = moved.argsort()
    points = np.interp((PROBS[1:-1] * 199 + 0.5) / 200, weights[order].cumsum(), moved[order])
    reached = [weights[moved <= x].sum() for x in found.quantile(PROBS[1:-1])]
    assert np.abs(np.array(reached) - [weights[moved <= x].sum() for x in points]).max() < 6e-3


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (0.25, -1.0), (3.0, 1e4)])
def test_a_line_takes_the_mean_of_cells_to_where_it_takes_the_laws_own(scale, shift):
    samples = np.random.default_rng(5).gamma(2, size=(300, 1))
    law = sketched(samples, per_octave=1)
    found = Pushforward.of(law, line(scale, shift))
    assert found.mean == pytest.approx(scale * samples.mean() + shift, rel=1e-12)
    pieces = sum(one.shares @ (one.lows + one.highs) / 2 for one in found.stretches)
    assert scale == 0 or pieces != pytest.approx(found.mean, rel=1e-6)


def test_a_bin_holds_what_is_on_its_lower_edge():
    found = Pushforward.of(exact(np.array([[0.0], [1.0], [1.0], [2.0]])), line(1, 0))
    assert found.shares(np.array([0.0, 1.0, 2.0, 3.0])).tolist() == [0.25, 0.5, 0.25]


def test_corners_are_finite_ends_and_knots():
    assert corners(line(2, 1, -np.inf, 3.0)).tolist() == [3.0]
    law = exact(np.arange(5.0)[:, None])
    quantile = fit("quantile", law, exact(np.arange(5.0)[:, None] ** 2))
    assert {0.0, 1.0, 2.0, 3.0, 4.0} <= set(corners(quantile).tolist())
