import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize

from act.errors import NotFiniteError, ShapeError
from act.transport.iti_probe import fit_iti_probe, solve


def drawn(num_source: int, num_target: int, num_neurons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(num_source, num_neurons)), generator.normal(size=(num_target, num_neurons))
    return a, b + 0.5 * generator.normal(size=num_neurons)


def loss(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> float:
    return float(at[:-1] @ at[:-1] / 2 + np.logaddexp(0, -y * (x @ at[:-1] + at[-1])).sum())


def slope(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    pull = y * np.exp(-np.logaddexp(0, y * (x @ at[:-1] + at[-1])))
    return np.append(at[:-1] - x.T @ pull, -pull.sum())


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Weights and intercept by SciPy's general minimiser."""
    x, y = np.concatenate([a, b]), np.repeat([-1.0, 1.0], [len(a), len(b)])
    start = np.zeros(x.shape[1] + 1)
    options = {"gtol": 1e-10, "maxiter": 10_000}
    return minimize(lambda at: loss(x, y, at), start, jac=lambda at: slope(x, y, at), method="BFGS", options=options).x


def shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return fit_iti_probe(torch.from_numpy(a), torch.from_numpy(b)).shift.numpy()


def test_the_oracle_has_the_slope_of_its_loss() -> None:
    a, b = drawn(5, 7, 3)
    x, y = np.concatenate([a, b]), np.repeat([-1.0, 1.0], [5, 7])

    assert check_grad(lambda at: loss(x, y, at), lambda at: slope(x, y, at), np.arange(4.0) / 3) < 1e-5


@pytest.mark.parametrize(
    ("num_source", "num_target", "num_neurons"),
    [(30, 20, 6), (1, 1, 3), (1, 4, 2), (3, 2, 40), (12, 15, 90), (80, 5, 1)],
)
def test_it_is_the_minimum_of_the_objective(num_source: int, num_target: int, num_neurons: int) -> None:
    a, b = drawn(num_source, num_target, num_neurons)
    weights = minimum(a, b)[:-1]
    direction = weights / np.linalg.norm(weights)

    np.testing.assert_allclose(shift(a, b), direction * np.concatenate([a, b]).dot(direction).std(), atol=1e-6)


def test_weights_and_intercept_are_those_of_the_objective() -> None:
    a, b = drawn(30, 20, 6)
    centre = np.concatenate([a, b]).mean(0)
    found = solve(torch.from_numpy(np.concatenate([a, b]) - centre), torch.tensor([0.0] * 30 + [1.0] * 20).double())
    wanted = minimum(a, b)

    np.testing.assert_allclose(found.weights, wanted[:-1], atol=1e-7)
    assert float(found.intercept - found.weights @ torch.from_numpy(centre)) == pytest.approx(wanted[-1], abs=1e-7)
    assert float(found.error) < 1e-9


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 16), st.sampled_from([1e-3, 1.0, 30.0]), st.integers(0, 99)
)
def test_at_the_solution_nothing_pulls(num_source: int, num_target: int, width: int, size: float, seed: int) -> None:
    a, b = (size * side for side in drawn(num_source, num_target, width, seed))
    features = np.concatenate([a, b])
    features = features - features.mean(0)
    labels = np.repeat([0.0, 1.0], [num_source, num_target])
    found = solve(torch.from_numpy(features), torch.from_numpy(labels))
    pull = slope(features, 2 * labels - 1, np.append(found.weights.numpy(), float(found.intercept)))

    assert np.abs(pull).max() <= 1e-8 * max(1.0, size)
    assert float(found.error) <= 1e-7 * max(1.0, size**2)


def test_a_strength_is_a_number_of_standard_deviations() -> None:
    a, b = drawn(40, 60, 5)
    found = shift(a, b)
    projected = np.concatenate([a, b]) @ found / np.linalg.norm(found)

    assert np.linalg.norm(found) == pytest.approx(projected.std(), rel=1e-12)
    assert found @ (b.mean(0) - a.mean(0)) > 0


def test_scale_is_1_and_the_bound_is_that_of_the_solver() -> None:
    found = fit_iti_probe(*(torch.from_numpy(side) for side in drawn(40, 60, 5)))

    assert torch.equal(found.scale, torch.ones(5, dtype=torch.float64))
    assert torch.equal(found.slope_error, torch.zeros(5, dtype=torch.float64))
    assert 0 <= float(found.offset_error.max()) < 1e-9


def test_with_more_neurons_than_samples_it_is_the_same_probe() -> None:
    a, b = drawn(6, 5, 11)
    wide = np.zeros((11, 30))

    together = shift(*(np.concatenate([side, wide[: len(side)]], axis=1) for side in (a, b)))

    np.testing.assert_allclose(together[:11], shift(a, b), atol=1e-9)
    np.testing.assert_allclose(together[11:], 0, atol=1e-12)


def test_the_same_bits_each_time_and_a_shift_of_all_samples_changes_nothing() -> None:
    a, b = drawn(30, 20, 6)

    np.testing.assert_array_equal(shift(a, b), shift(a.copy(), b.copy()))
    np.testing.assert_allclose(shift(a + 1e3, b + 1e3), shift(a, b), rtol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_sides_that_nothing_tells_apart_stay(value: float) -> None:
    same = np.random.default_rng(0).normal(size=(7, 3)) * (value != 0) + value
    constant = np.full((5, 3), value)

    assert not shift(constant, constant[:2]).any()
    assert not shift(same, same).any()


def test_swapped_sides_give_the_opposite() -> None:
    a, b = drawn(30, 20, 6)

    np.testing.assert_allclose(shift(b, a), -shift(a, b), atol=1e-9)


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e6, 1e15])
def test_activations_of_any_size_are_solved(size: float) -> None:
    a, b = drawn(9, 7, 4)
    found = shift(size * a, size * b)

    assert np.isfinite(found).all()
    assert np.linalg.norm(found) <= 5 * size


@pytest.mark.parametrize("seed", range(12))
def test_outliers_do_not_lead_the_solver_astray(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Whole steps of Newton's end far away for some of these.
    a, b = (100.0 * generator.standard_cauchy(size=(num, 20)) for num in (29, 7))
    features = np.concatenate([a, b + 20])
    features = features - features.mean(0)
    labels = np.repeat([0.0, 1.0], [29, 7])
    found = solve(torch.from_numpy(features), torch.from_numpy(labels))
    at = np.append(found.weights.numpy(), float(found.intercept))

    assert np.abs(slope(features, 2 * labels - 1, at)).max() <= 1e-9 * np.abs(features).max()


def test_what_is_no_samples_is_refused() -> None:
    good = torch.zeros(3, 2)
    for wrong in (torch.zeros(2), torch.zeros(0, 2), torch.zeros(3, 4)):
        with pytest.raises(ShapeError, match="samples"):
            fit_iti_probe(good, wrong)
        with pytest.raises(ShapeError, match="samples"):
            fit_iti_probe(wrong, good)
    with pytest.raises(
        NotFiniteError, match="the target's samples holds 1 value that is not finite, first at neuron 1"
    ):
        fit_iti_probe(good, torch.tensor([[0.0, torch.nan]]))
