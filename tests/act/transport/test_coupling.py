from fractions import Fraction
from itertools import pairwise
from math import gcd, lcm

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment

from act.errors import CountsError
from act.marginal import Marginal
from act.transport.coupling import couple, wasserstein2
from act.transport.refinement import MAX_UNIT, common_unit, gaps, merged_steps
from tests.laws import binned, exact, graded, moved_inside, sketched, stated

COUNTS = st.integers(1, 24)


def repeated(samples: np.ndarray, count: int) -> np.ndarray:
    """The same law from `count` samples."""
    return np.repeat(np.sort(samples, axis=0), count // len(samples), axis=0)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the order statistics, neuron by neuron, by SciPy; 0 where one is constant."""
    count = lcm(len(a), len(b))
    pairs = zip(repeated(a, count).T, repeated(b, count).T, strict=True)
    return np.array([stats.pearsonr(x, y).statistic if np.ptp(x) and np.ptp(y) else 0.0 for x, y in pairs])


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 2**32 - 1))
def test_unequal_counts_are_exact(num_source: int, num_target: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(num_source, 3)), generator.standard_t(2, size=(num_target, 3))
    found = couple(exact(a), exact(b))

    np.testing.assert_allclose(found.correlation, correlation(a, b), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.lowest, found.correlation, atol=1e-13)
    np.testing.assert_allclose(found.highest, found.correlation, atol=1e-13)


@given(st.integers(1, 400), st.integers(1, 400))
def test_steps_are_the_merged_grid(n: int, m: int) -> None:
    left, right, widths = merged_steps(n, m)

    assert len(widths) == n + m - gcd(n, m)
    assert int(widths.sum()) == lcm(n, m)
    assert torch.equal(torch.bincount(left, widths.double(), n), torch.full((n,), lcm(n, m) / n, dtype=torch.float64))
    assert torch.equal(torch.bincount(right, widths.double(), m), torch.full((m,), lcm(n, m) / m, dtype=torch.float64))
    assert (left.diff() >= 0).all()
    assert (right.diff() >= 0).all()


def test_large_counts_without_a_common_divisor_stay_whole_numbers() -> None:
    left, right, widths = merged_steps(999_983, 1_000_003)

    assert len(widths) == 999_983 + 1_000_003 - 1
    assert int(widths.sum()) == 999_983 * 1_000_003
    assert (int(left[-1]), int(right[-1])) == (999_982, 1_000_002)


def test_it_is_the_optimal_assignment() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(40, 1)), generator.exponential(size=(40, 1))
    rows, columns = linear_sum_assignment((a - b.T) ** 2)
    expected = np.corrcoef(a[rows, 0], b[columns, 0])[0, 1]

    assert couple(exact(a), exact(b)).correlation.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_samples", [2, 33, 1000])
@pytest.mark.parametrize("law", [exact, sketched])
def test_a_law_with_itself_gives_1_to_the_bit(num_samples: int, law) -> None:
    samples = np.random.default_rng(0).standard_t(1.5, size=(num_samples, 9)).astype(np.float32).astype(np.float64)
    found = couple(law(samples), law(samples))

    assert (found.correlation == 1).all()
    assert (found.highest == 1).all()
    assert (wasserstein2(law(samples), law(samples)) == 0).all()


def test_it_is_symmetric_and_never_negative() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(12, 50)), np.repeat(1e8 + generator.normal(size=(1, 50)), 7, axis=0)
    c = generator.standard_t(1, size=(31, 50))

    assert (couple(exact(a), exact(b)).correlation == 0).all()
    for law in (exact, sketched):
        one, other = couple(law(a), law(c)), couple(law(c), law(a))
        assert (one.lowest >= 0).all()
        for part in ("correlation", "lowest", "highest"):
            np.testing.assert_allclose(getattr(one, part), getattr(other, part), atol=1e-13)


@pytest.mark.parametrize("kinds", ["samples", "cells", "both"])
def test_neither_blocks_nor_neighbours_change_a_bit(kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_t(2, size=(3000, 7)), generator.normal(size=(1400, 7))

    def couplings(neurons: slice) -> torch.Tensor:
        source = exact(a[:, neurons]) if kinds != "cells" else cut(a, neurons)
        found = couple(source, exact(b[:, neurons]) if kinds == "samples" else cut(b, neurons))
        return torch.stack([found.correlation, found.lowest, found.highest])

    whole = couplings(slice(0, 7))
    monkeypatch.setattr("act.transport.refinement.PIECES", 10_000)

    assert torch.equal(couplings(slice(0, 7)), whole)
    for neuron in range(7):
        assert torch.equal(couplings(slice(neuron, neuron + 1)), whole[:, neuron : neuron + 1])


def cut(samples: np.ndarray, neurons: slice) -> Marginal:
    """Neurons with few cells beside neurons with many."""
    chosen = list(range(samples.shape[1]))[neurons]
    return binned(samples[:, neurons], [graded(samples[:, neuron], 4 * 2**neuron) for neuron in chosen])


@pytest.mark.parametrize("num_cells", [64, 500, 690, 1000])
def test_the_distances_do_not_see_how_many_cells_a_neighbour_has(num_cells: int) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3000, 9)), generator.gamma(2, size=(3000, 9))

    def distances(neurons: int) -> torch.Tensor:
        edges = [np.linspace(-4, 9, num_cells)] * 8 + [np.linspace(-4, 9, 100_000)]
        laws = [binned(x[:, :neurons], edges[:neurons]) for x in (a, b)]
        found = gaps(*laws)
        return torch.stack([found.between, found.nearest, found.farthest, found.num_pieces])[:, :8]

    assert torch.equal(distances(8), distances(9))


def test_the_pieces_of_cells_are_those_of_fractions() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = (
            generator.normal(size=(generator.integers(2, 30), 1)),
            generator.gamma(1, size=(generator.integers(2, 30), 1)),
        )
        laws = [binned(x, [np.sort(generator.normal(size=6))]) for x in (a, b)]
        found = gaps(*laws)
        expected = in_fractions(*laws)

        for part, value in zip(("between", "nearest", "farthest"), expected, strict=True):
            assert getattr(found, part).item() == pytest.approx(value, rel=1e-12, abs=1e-15)


def in_fractions(source: Marginal, target: Marginal) -> tuple[float, float, float]:
    """The three distances by a walk over the pieces in exact fractions; only the last step is a float."""
    walks = [cells_of(law) for law in (source, target)]
    own = [standardised(walk) for walk in walks]
    stated = [(float(law.mean), float(law.deviation)) for law in (source, target)]
    places = sorted({end for walk in walks for _, end, _, _ in walk} | {Fraction(0)})
    between = nearest = farthest = 0.0
    for start, end in pairwise(places):
        one, other = (next(c for c in walk if c[0] <= start and end <= c[1]) for walk in walks)
        gap = [value(one, u, own[0]) - value(other, u, own[1]) for u in (start, (start + end) / 2, end)]
        between += float(end - start) * (gap[0] ** 2 + 4 * gap[1] ** 2 + gap[2] ** 2) / 6
        (a, b), (c, d) = (
            [(float(x) - mean) / deviation for x in cell[2:]]
            for cell, (mean, deviation) in ((one, stated[0]), (other, stated[1]))
        )
        nearest += float(end - start) * max(a - d, c - b, 0) ** 2
        farthest += float(end - start) * max(b - c, d - a) ** 2
    return between, nearest, farthest


def cells_of(law: Marginal) -> list[tuple[Fraction, Fraction, Fraction, Fraction]]:
    ends = [Fraction(int(end), law.num_samples) for end in law.ends[0]]
    rows = zip([Fraction(0), *ends], ends, law.lows[0].tolist(), law.highs[0].tolist(), strict=False)
    return [(start, end, Fraction(low), Fraction(high)) for start, end, low, high in rows if start < end]


def standardised(walk: list[tuple[Fraction, Fraction, Fraction, Fraction]]) -> tuple[Fraction, float]:
    mean = sum(((end - start) * (low + high) / 2 for start, end, low, high in walk), Fraction(0))
    square = sum(
        ((end - start) * (((low + high) / 2 - mean) ** 2 + (high - low) ** 2 / 12) for start, end, low, high in walk),
        Fraction(0),
    )
    return mean, float(square) ** 0.5


def value(cell: tuple[Fraction, ...], u: Fraction, moments: tuple[Fraction, float]) -> float:
    start, end, low, high = cell
    return float(low + (high - low) * (u - start) / (end - start) - moments[0]) / moments[1]


@st.composite
def samples_and_cells(draw) -> tuple[np.ndarray, np.ndarray]:
    values = st.integers(-8, 8) | st.floats(-9, 9, width=32)
    samples = np.array(draw(st.lists(values, min_size=1, max_size=12)), dtype=np.float64) + 0.0
    edges = np.unique(
        np.array(draw(st.lists(values | st.sampled_from(samples.tolist()), max_size=8)), dtype=np.float64)
    )
    return samples[:, None], edges


OFF = st.sampled_from([0.0, 1e-6, -1e-6, 0.1, -0.1])


@given(samples_and_cells(), samples_and_cells(), st.tuples(OFF, OFF), st.tuples(OFF, OFF), st.sampled_from([0.0, 0.5]))
def test_the_correlation_of_the_samples_is_within_its_bounds(one, other, off, off_other, edge: float) -> None:
    laws, all_moved = [], []
    for seed, ((samples, edges), moments_off) in enumerate(((one, off), (other, off_other))):
        moved = moved_inside(samples, binned(samples, [edges]), edge, seed)
        laws.append(stated(samples, [edges], moments_off, edge, moments_of=moved))
        all_moved.append(moved)
    true = correlation(*all_moved).item()

    for pair in (laws, (exact(all_moved[0]), laws[1]), (laws[0], exact(all_moved[1]))):
        found = couple(*pair)
        assert found.lowest.item() <= true + 1e-12
        assert true - 1e-12 <= found.highest.item()
        assert 0 <= found.lowest.item() <= found.correlation.item() <= found.highest.item() <= 1


@pytest.mark.parametrize("off", [(0.02, 0.0), (0.0, 0.05), (0.0, -0.05), (0.01, 0.02)])
@pytest.mark.parametrize("off_other", [(-0.02, 0.0), (0.0, 0.05), (0.0, -0.05), (0.0, 0.0)])
@pytest.mark.parametrize("same", [True, False])
def test_moments_that_are_off_are_reckoned_with_where_cells_are_thin(off, off_other, same: bool) -> None:
    """A cell for each sample leaves nothing open but the moments."""
    a, b = np.random.default_rng(0).normal(size=(2, 400, 1))
    b = a if same else b
    found = couple(*(stated(x, [np.sort(x[:, 0])], moments_off) for x, moments_off in ((a, off), (b, off_other))))
    true = correlation(a, b).item()

    assert found.lowest.item() - 1e-12 <= true <= found.highest.item() + 1e-12
    assert found.highest.item() - found.lowest.item() < 0.05


def thin(samples: np.ndarray) -> np.ndarray:
    """Edges of a cell of nearly no width for each sample."""
    return np.unique(np.r_[samples[:, 0], samples[:, 0] - 1e-12])


def test_deviations_that_are_both_too_large_make_samples_look_nearer_than_they_are() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(200, 1)), -generator.exponential(size=(200, 1))
    found = couple(*(stated(x, [thin(x)], (0.0, 0.1)) for x in (a, b)))
    true = correlation(a, b).item()

    assert found.lowest.item() <= true <= found.highest.item()
    assert found.lowest.item() > true - 0.3


@pytest.mark.parametrize("waves", [(1, 2), (1, -1), (-1, 1)])
def test_samples_that_lie_outside_their_cells_widen_the_bounds(waves: tuple[int, int]) -> None:
    """Cells of nearly no width at even distances, and samples that are beside them, those of the target elsewhere."""
    even = np.arange(50.0)[:, None]
    beside = [even + 0.4 * np.sin(wave * np.pi / 49 * even) for wave in waves]
    true = correlation(*beside).item()
    wide, narrow = (
        couple(*(stated(even, [thin(even)], edge_error=error, moments_of=samples) for samples in beside))
        for error in (0.4, 0.0)
    )

    assert wide.lowest.item() <= true <= wide.highest.item()
    assert not narrow.lowest.item() <= true <= narrow.highest.item()


def test_an_edge_error_moves_both_ends_of_each_cell() -> None:
    even = np.arange(50.0)[:, None]
    error = np.r_[0.0, np.full(48, 0.4), 0.0][:, None]
    laws = [stated(even, [thin(even)], edge_error=edge) for edge in (0.4, 0.4)]
    farthest = ((2 * error / even.std()) ** 2).mean()

    assert gaps(*laws).farthest.item() == pytest.approx(farthest, rel=1e-3)
    assert gaps(*laws).nearest.item() == 0


def test_bounds_of_the_correlation_are_met_by_samples_at_the_ends_of_cells() -> None:
    """Three samples at the extremes and one cell between: the worst place of the one in it is an end of the cell."""
    laws = [binned(np.array([[0.0], [x], [10.0]]), [np.array([1.0, 9.0])], spread_error=5.0) for x in (1.5, 8.5)]
    found = couple(*laws)
    reachable = [
        correlation(np.array([[0], [x], [10]]), np.array([[0], [y], [10]])).item()
        for x in np.linspace(1, 9, 30)
        for y in np.linspace(1, 9, 30)
    ]

    assert found.lowest.item() <= min(reachable)
    assert found.highest.item() >= max(reachable) - 1e-12


def test_a_constant_law_correlates_with_nothing() -> None:
    constant, normal = np.full((5, 1), 0.1), np.random.default_rng(0).normal(size=(9, 1))
    for law in (exact, sketched):
        for pair in ((constant, normal), (normal, constant), (constant, constant)):
            found = couple(*(law(samples) for samples in pair))
            assert (found.correlation.item(), found.lowest.item(), found.highest.item()) == (0, 0, 0)


def test_a_million_times_the_counts_is_the_same_law() -> None:
    generator = np.random.default_rng(0)
    small = [sketched(generator.normal(size=(n, 3))) for n in (1000, 999)]
    large = [
        Marginal(law.lows, law.highs, law.ends * 1_000_000, *(getattr(law, name) for name in MOMENTS)) for law in small
    ]

    np.testing.assert_allclose(couple(*large).correlation, couple(*small).correlation, rtol=1e-12)


MOMENTS = ("mean", "variance", "mean_error", "deviation_error", "edge_error")


def test_counts_without_a_common_multiple_in_int64_are_refused() -> None:
    assert common_unit(2**31 - 1, 2**31 - 1) == 2**31 - 1
    assert common_unit(2**60, 2**61) == 2**61
    assert (2**31 + 11) * (2**31 - 1) >= MAX_UNIT > (2**31 - 99) * (2**31 - 1)
    with pytest.raises(CountsError, match=r"2147483659 and 2147483647 samples.*have a common divisor"):
        common_unit(2**31 + 11, 2**31 - 1)
    with pytest.raises(CountsError):
        merged_steps(2**31 + 11, 2**31 - 1)


@given(COUNTS, COUNTS, st.integers(0, 2**32 - 1))
def test_the_distance_of_samples_is_the_mean_square_of_the_plan(num_source: int, num_target: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = 3 + generator.normal(size=(num_source, 3)), generator.gamma(1, size=(num_target, 3))
    count = lcm(num_source, num_target)
    expected = np.sqrt(((repeated(a, count) - repeated(b, count)) ** 2).mean(axis=0))

    np.testing.assert_allclose(wasserstein2(exact(a), exact(b)), expected, rtol=1e-9)


def test_the_distance_of_cells_is_near_that_of_the_samples() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(5000, 6)), 1 + 2 * generator.gamma(2, size=(3000, 6))
    laws = sketched(a), sketched(b)

    np.testing.assert_allclose(wasserstein2(*laws), wasserstein2(exact(a), exact(b)), rtol=1e-4)
    assert torch.equal(wasserstein2(*laws, couple(*laws)), wasserstein2(*laws))


def test_the_estimate_cancels_what_the_cells_leave_out_of_the_variance() -> None:
    """Values on the ends of cells, for their float32 grid is no finer: lines through the cells are too narrow."""
    generator = np.random.default_rng(0)
    a, b = ((1e3 + spread * generator.normal(size=(20000, 4))).astype(np.float32) for spread in (0.01, 0.02))
    laws = [sketched(samples.astype(np.float64)) for samples in (a, b)]
    true = couple(Marginal.from_samples(torch.from_numpy(a)), Marginal.from_samples(torch.from_numpy(b))).correlation
    lines = [law.quantile((torch.arange(20000) + 0.5) / 20000) for law in laws]
    raw = torch.stack([(line - law.mean) / law.deviation for line, law in zip(lines, laws, strict=True)]).prod(dim=0)

    assert (couple(*laws).correlation - true).abs().max() < 1e-5
    assert (raw.mean(dim=0) - true).abs().min() > 1e-4
