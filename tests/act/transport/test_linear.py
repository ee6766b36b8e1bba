import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from act.transport.gaussian import fit_gaussian
from act.transport.linear import fit_linear
from tests.laws import exact, sketched


def linear(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Linear-AcT, neuron by neuron, from the words of the paper: a least-squares line through order statistics."""
    count = np.lcm(len(a), len(b))
    slopes, intercepts = [], []
    for neuron in range(a.shape[1]):
        x = np.repeat(np.sort(a[:, neuron]), count // len(a))
        y = np.repeat(np.sort(b[:, neuron]), count // len(b))
        line = stats.linregress(x, y)
        slopes.append(line.slope)
        intercepts.append(line.intercept)
    return np.array(slopes), np.array(intercepts)


def fitted(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    line = fit_linear(exact(a), exact(b))
    return line.scale.numpy(), line.shift.numpy()


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_it_is_the_least_squares_line_for_any_counts(num_source: int, num_target: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(3, 2, size=(num_source, 4)), generator.gamma(2, size=(num_target, 4))
    scale, shift = fitted(a, b)
    expected_scale, expected_shift = linear(a, b)

    np.testing.assert_allclose(scale, expected_scale, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(shift, expected_shift, rtol=1e-8, atol=1e-8)


def test_the_closed_form_for_equal_counts() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(50, 5)), generator.lognormal(size=(50, 5))
    centred_a, centred_b = np.sort(a, 0) - a.mean(0), np.sort(b, 0) - b.mean(0)

    scale, shift = fitted(a, b)

    np.testing.assert_allclose(scale, (centred_a * centred_b).sum(0) / (centred_a**2).sum(0), rtol=1e-12)
    np.testing.assert_allclose(shift, b.mean(0) - scale * a.mean(0), rtol=1e-10, atol=1e-12)


def test_an_affine_target_gives_that_affine_map() -> None:
    a = np.random.default_rng(0).standard_t(2, size=(101, 3))
    scale, shift = fitted(a, 2.5 * a[::-1] - 7)

    np.testing.assert_allclose(scale, 2.5, rtol=1e-12)
    np.testing.assert_allclose(shift, -7, rtol=1e-12)


def test_a_mirrored_target_gives_an_increasing_map() -> None:
    a = np.random.default_rng(0).normal(size=(100, 8))

    assert (fitted(a, -a)[0] > 0.5).all()


def test_a_law_to_itself_is_the_identity_exactly() -> None:
    a = np.random.default_rng(0).standard_t(1.5, size=(77, 8)).astype(np.float32)
    scale, shift = fitted(a, a)

    assert (scale == 1).all()
    assert (shift == 0).all()


def test_two_samples_a_side_are_met_exactly() -> None:
    scale, shift = fitted(np.array([[3.0], [1.0]]), np.array([[10.0], [20.0]]))

    assert (scale.item(), shift.item()) == (5.0, 5.0)


def test_heavy_tails() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_cauchy(size=(2000, 4)), generator.standard_t(1.2, size=(2000, 4))

    for found, expected in zip(fitted(a, b), linear(a, b), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_huge_mean_and_a_tiny_spread() -> None:
    generator = np.random.default_rng(0)
    noise, other = generator.normal(size=(300, 4)), generator.normal(size=(300, 4))

    scale, shift = fitted(1e6 + noise, 1e6 + other)

    np.testing.assert_allclose(scale, linear(noise, other)[0], rtol=1e-8)
    np.testing.assert_allclose(scale * 1e6 + shift, 1e6 + linear(noise, other)[1], rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
@pytest.mark.parametrize("num_source", [1, 7])
def test_a_constant_source_is_shifted_by_the_means(value: float, num_source: int) -> None:
    b = np.random.default_rng(0).normal(size=(10, 1))
    scale, shift = fitted(np.full((num_source, 1), value), b)

    assert scale.item() == 1.0
    np.testing.assert_allclose(shift, b.mean(0) - value, rtol=1e-12)


def test_a_constant_target_collapses_the_law() -> None:
    a = np.random.default_rng(0).normal(size=(10, 1))
    scale, shift = fitted(a, np.full((13, 1), 0.1))

    assert scale.item() == pytest.approx(0.0, abs=1e-15)
    assert scale.item() >= 0
    assert shift.item() == pytest.approx(0.1)


@pytest.mark.parametrize("spread", [1e-44, 1e-200])
def test_a_spread_too_small_for_float32_maps_is_no_spread(spread: float) -> None:
    b = np.array([[-3.0], [5.0]])
    scale, shift = fitted(np.array([[0.0], [spread]]), b)

    assert (scale.item(), shift.item()) == (1.0, 1.0)


def test_neurons_do_not_see_each_other() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(50, 6)), generator.normal(size=(41, 6))
    whole = fitted(a, b)

    for neuron in range(6):
        alone = fitted(a[:, [neuron]], b[:, [neuron]])
        assert (alone[0], alone[1]) == (whole[0][neuron], whole[1][neuron])


def test_cells_give_nearly_the_line_of_the_samples() -> None:
    """A tenth of a percent of the slope, whatever the shapes, and that from cells a thirtieth of their octave wide."""
    generator = np.random.default_rng(0)
    a = np.stack([generator.normal(size=5000), generator.lognormal(size=5000), generator.laplace(size=5000)], axis=1)
    b = np.stack(
        [generator.gamma(2, size=3000), generator.standard_t(3, size=3000), generator.normal(size=3000)], axis=1
    )
    found, true = fit_linear(sketched(a), sketched(b)), fit_linear(exact(a), exact(b))

    np.testing.assert_allclose(found.scale, true.scale, rtol=1e-3)
    np.testing.assert_allclose(found.shift, true.shift, atol=1e-3)


@pytest.mark.parametrize("law", [exact, sketched])
def test_a_law_of_any_kind_to_itself_is_the_identity_exactly(law) -> None:
    a = np.random.default_rng(0).standard_t(1.5, size=(500, 8)).astype(np.float32).astype(np.float64)
    line = fit_linear(law(a), law(a))

    assert (line.scale == 1).all()
    assert (line.shift == 0).all()


@pytest.mark.parametrize("law", [exact, sketched])
def test_it_is_never_steeper_than_the_gaussian_map(law) -> None:
    generator = np.random.default_rng(0)
    a, b = law(generator.standard_t(2, size=(100, 20))), law(generator.normal(size=(70, 20)))

    assert (fit_linear(a, b).scale <= fit_gaussian(a, b).scale).all()
