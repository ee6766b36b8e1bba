from math import gcd, lcm

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from act.marginal import Marginal
from act.transport.coupling import coupled_covariance, merged_steps

COUNTS = st.integers(1, 24)


def law(samples: np.ndarray) -> Marginal:
    return Marginal.from_samples(torch.from_numpy(samples))


def repeated(samples: np.ndarray, count: int) -> np.ndarray:
    """The same law from `count` samples."""
    return np.repeat(np.sort(samples, axis=0), count // len(samples), axis=0)


@given(COUNTS, COUNTS, st.integers(0, 2**32 - 1))
def test_unequal_counts_are_exact(num_source: int, num_target: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(num_source, 3)), generator.standard_t(2, size=(num_target, 3))
    common = lcm(num_source, num_target)
    a_all, b_all = repeated(a, common), repeated(b, common)
    expected = ((a_all - a.mean(0)) * (b_all - b.mean(0))).mean(0)

    np.testing.assert_allclose(coupled_covariance(law(a), law(b)), expected, rtol=1e-10, atol=1e-12)


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
    expected = np.cov(a[rows, 0], b[columns, 0], bias=True)[0, 1]

    assert coupled_covariance(law(a), law(b)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 33, 1000])
def test_a_law_with_itself_gives_its_variance_to_the_bit(num_samples: int) -> None:
    one = law(np.random.default_rng(0).standard_t(1.5, size=(num_samples, 9)).astype(np.float32))

    assert torch.equal(coupled_covariance(one, one), one.variance)


def test_it_is_symmetric_and_never_negative() -> None:
    generator = np.random.default_rng(0)
    a, b = law(generator.normal(size=(12, 50))), law(np.repeat(1e8 + generator.normal(size=(1, 50)), 7, axis=0))

    assert (coupled_covariance(a, b) >= 0).all()
    np.testing.assert_allclose(coupled_covariance(a, b), coupled_covariance(b, a), atol=1e-7)


def test_blocks_change_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    a, b = law(generator.normal(size=(30, 11))), law(generator.normal(size=(14, 11)))
    whole = coupled_covariance(a, b)
    monkeypatch.setattr("act.marginal.WORK_SIZE", 100)

    assert torch.equal(coupled_covariance(a, b), whole)
