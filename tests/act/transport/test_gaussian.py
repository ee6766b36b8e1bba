import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from act.transport.gaussian import fit_gaussian
from act.transport.linear import fit_linear
from tests.laws import exact, sketched


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_it_carries_mean_and_deviation_over(num_source: int, num_target: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = 5 + generator.normal(size=(num_source, 3)), generator.gamma(2, size=(num_target, 3))
    line = fit_gaussian(exact(a), exact(b))
    moved = line.scale.numpy() * a + line.shift.numpy()

    np.testing.assert_allclose(moved.mean(0), b.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved.std(0), b.std(0), rtol=1e-9, atol=1e-9)


def test_cells_change_nothing_as_their_moments_are_those_of_the_samples() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(200, 4)), generator.gamma(2, size=(300, 4))
    found, true = fit_gaussian(sketched(a), sketched(b)), fit_gaussian(exact(a), exact(b))

    np.testing.assert_allclose(found.scale, true.scale, rtol=1e-12)
    np.testing.assert_allclose(found.shift, true.shift, rtol=1e-12, atol=1e-12)


def test_for_normal_laws_it_is_the_optimal_transport() -> None:
    """The quantiles of two normal laws as samples: the linear map, which is optimal among lines, is the same."""
    u = (np.arange(4000) + 0.5) / 4000
    a, b = stats.norm(2, 3).ppf(u)[:, None], stats.norm(-1, 0.5).ppf(u)[:, None]
    gaussian, linear = fit_gaussian(exact(a), exact(b)), fit_linear(exact(a), exact(b))

    assert gaussian.scale.item() == pytest.approx(0.5 / 3, rel=1e-9)
    assert gaussian.scale.item() == pytest.approx(linear.scale.item(), rel=1e-9)
    assert gaussian.shift.item() == pytest.approx(-1 - 2 * 0.5 / 3, rel=1e-9)


@pytest.mark.parametrize("law", [exact, sketched])
def test_a_law_to_itself_is_the_identity_exactly(law) -> None:
    a = np.random.default_rng(0).standard_t(1.5, size=(77, 8))
    line = fit_gaussian(law(a), law(a))

    assert torch.equal(line.scale, torch.ones(8, dtype=torch.float64))
    assert torch.equal(line.shift, torch.zeros(8, dtype=torch.float64))
