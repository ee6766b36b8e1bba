"""Every affine method against an implementation in NumPy and SciPy that shares nothing with it."""

from collections.abc import Callable
from math import lcm

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from act import transport
from act.errors import PairsError, SamplesError, ShapeError, ThresholdError
from act.marginal import Marginal
from act.transport.interface import AbstractMap
from act.transport.ranking import average_precision_bounds
from tests.laws import binned, exact, graded, sketched

Line = tuple[np.ndarray, np.ndarray]
Reference = Callable[[np.ndarray, np.ndarray], Line]

AFFINE = tuple(method for method in transport.METHODS if method != "quantile")
EACH = pytest.mark.parametrize("method", AFFINE)
COUNTS = pytest.mark.parametrize(("num_source", "num_target"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (60, 41)])


def hard(num: int, seed: int) -> np.ndarray:
    """Samples of neurons that methods stumble over, `[num, 8]`, each a float32 number."""
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(8, num))
    columns = [
        normal[0] * (1 + seed),
        np.full(num, 0.7),
        np.zeros(num),
        np.where(normal[3] > 0.3, 2.0, -1.0),
        1e3 + 1e-2 * normal[4] - 1e-2 * seed,
        generator.standard_cauchy(num),
        np.maximum(normal[6], 0.0),
        np.full(num, 1.0 + seed),
    ]
    return np.stack(columns, axis=1).astype(np.float32).astype(np.float64)


def ones(a: np.ndarray) -> np.ndarray:
    return np.ones(a.shape[1])


def with_means(scale: np.ndarray, a: np.ndarray, b: np.ndarray) -> Line:
    """The line of some slope through the means; without spread the slope is 1."""
    scale = np.where(np.ptp(a, axis=0) > 0, scale, 1.0)
    return scale, b.mean(0) - scale * a.mean(0)


def linear(a: np.ndarray, b: np.ndarray) -> Line:
    count = lcm(len(a), len(b))
    left, right = (np.sort(np.repeat(side, count // len(side), axis=0), axis=0) for side in (a, b))
    left, right = left - a.mean(0), right - b.mean(0)
    squares = (left * left).sum(0)
    return with_means((left * right).sum(0) / np.where(squares > 0, squares, 1.0), a, b)


def gaussian(a: np.ndarray, b: np.ndarray) -> Line:
    return with_means(b.std(0) / np.where(a.std(0) > 0, a.std(0), 1.0), a, b)


def aura(a: np.ndarray, b: np.ndarray) -> Line:
    pairs = zip(a.T, b.T, strict=True)
    areas = np.array([stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in pairs])
    gini = 2 * (areas - 0.5)
    return np.where(gini > 0, 1 - gini, 1.0), np.zeros(a.shape[1])


def precision(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over the source of the precision at each sample."""
    return float(np.mean([(a >= x).sum() / ((a >= x).sum() + (b >= x).sum()) for x in a]))


def det_zero(a: np.ndarray, b: np.ndarray) -> Line:
    detects = np.array([precision(x, y) > 0.5 for x, y in zip(a.T, b.T, strict=True)])
    return np.where(detects, 0.0, 1.0), np.where(detects, b.mean(0), 0.0)


def iti_probe(a: np.ndarray, b: np.ndarray) -> Line:
    """The probe by a general minimiser of the same objective."""
    x, y = np.concatenate([a, b]), np.repeat([-1.0, 1.0], [len(a), len(b)])
    centred = x - x.mean(0)

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        margins = y * (centred @ at[:-1] + at[-1])
        pull = y / (1 + np.exp(margins))
        loss = at[:-1] @ at[:-1] / 2 + np.logaddexp(0, -margins).sum()
        return loss, np.append(at[:-1] - centred.T @ pull, -pull.sum())

    start = np.zeros(x.shape[1] + 1)
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000}).x[:-1]
    size = np.linalg.norm(found)
    return ones(a), (x @ found).std() * found / size**2 if size > 1e-9 else 0 * found


REFERENCES: dict[str, Reference] = {
    "det-zero": det_zero,
    "actadd": lambda a, b: (ones(a), (b - a).mean(0)),
    "caa": lambda a, b: (ones(a), b.mean(0) - a.mean(0)),
    "aura": aura,
    "east": lambda a, b: (ones(a), b.mean(0)),
    "iti-mean": lambda a, b: (ones(a), b.mean(0) - a.mean(0)),
    "iti-probe": iti_probe,
    "mean": lambda a, b: (ones(a), b.mean(0) - a.mean(0)),
    "gaussian": gaussian,
    "linear": linear,
}


def sides(method: str, num_source: int, num_target: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = hard(num_source, 0), hard(num_source if method == "actadd" else num_target, 1)
    if method == "iti-probe":
        # Squares of 1e3 and of heavy tails leave a general minimiser without a gradient.
        return a[:, [0, 1, 2, 3, 6]], b[:, [0, 1, 2, 3, 6]]
    return a, b


def fitted(method: str, a: np.ndarray, b: np.ndarray, law: Callable[[np.ndarray], Marginal] = exact) -> AbstractMap:
    samples = torch.from_numpy(a), torch.from_numpy(b)
    return transport.fit(method, law(a), law(b), samples=samples)


def places(a: np.ndarray, seed: int = 0) -> np.ndarray:
    """Activations between the extremes of each neuron, both among them, float32 numbers."""
    low, high = a.min(0), a.max(0)
    between = low + (high - low) * np.random.default_rng(seed).random((50, a.shape[1]))
    return np.concatenate([a, between]).astype(np.float32).astype(np.float64).clip(low, high)


def test_there_is_a_reference_for_each_method() -> None:
    assert set(REFERENCES) == set(AFFINE)


@EACH
@COUNTS
def test_it_agrees_with_the_reference_on_samples(method: str, num_source: int, num_target: int) -> None:
    a, b = sides(method, num_source, num_target)
    found, (scale, shift) = fitted(method, a, b), REFERENCES[method](a, b)
    size = np.abs(a).max(0) + np.abs(b).max(0)

    np.testing.assert_allclose(found.tensors()["scale"], scale, rtol=1e-5, atol=1e-12)
    assert (np.abs(found.tensors()["shift"].double().numpy() - shift) <= 1e-5 * size * np.maximum(1, scale)).all()


def loose(samples: np.ndarray) -> Marginal:
    """Cells whose moments and ends are only known so far."""
    return binned(samples, [graded(column, 8) for column in samples.T], spread_error=0.01, edge_error=0.01)


@EACH
@COUNTS
@pytest.mark.parametrize("law", [exact, sketched, loose])
def test_its_error_holds_for_the_map_of_the_samples(
    method: str, num_source: int, num_target: int, law: Callable[[np.ndarray], Marginal]
) -> None:
    a, b = sides(method, num_source, num_target)
    found, (scale, shift) = fitted(method, a, b, law), REFERENCES[method](a, b)
    x = places(a)
    moved = found(torch.from_numpy(x).float()).double().numpy()
    wanted = (scale * x + shift).astype(np.float32).astype(np.float64)
    # A general minimiser is no better than this.
    slack = 1e-6 * np.abs(shift).max() if method == "iti-probe" else 0.0

    assert (np.abs(moved - wanted) <= found.error.double().numpy() + slack).all()


@EACH
def test_the_error_of_samples_is_that_of_float32(method: str) -> None:
    a, b = sides(method, 60, 41)
    found = fitted(method, a, b)
    size = np.abs(a).max(0) + np.abs(b).max(0)

    # A dead neuron may be off by a few of the smallest float32 numbers, or by what the solver leaves.
    least = 1e-11 if method == "iti-probe" else 1e-40
    steep = np.maximum(1, found.tensors()["scale"].numpy())
    assert (found.error.double().numpy() <= 1e-5 * size * steep + least).all()


@EACH
@COUNTS
@pytest.mark.parametrize("law", [exact, sketched])
def test_nothing_that_is_finite_gives_nan(method: str, num_source: int, num_target: int, law) -> None:
    a, b = sides(method, num_source, num_target)
    found = fitted(method, a, b, law)

    for name, part in found.tensors().items():
        assert not part.isnan().any(), name
    for strength in (-1.0, 0.0, 0.3, 1.0, 2.0):
        assert found(torch.from_numpy(places(a)).float(), strength).isfinite().all()


@EACH
def test_a_law_to_itself_is_moved_as_the_formula_says(method: str) -> None:
    a, _ = sides(method, 50, 50)
    found, (scale, shift) = fitted(method, a, a), REFERENCES[method](a, a)

    np.testing.assert_allclose(found.tensors()["scale"], scale, rtol=1e-6)
    np.testing.assert_allclose(found.tensors()["shift"], shift, rtol=1e-5, atol=1e-4)
    if method not in {"east", "det-zero", "aura"}:
        assert not found.moves.any()


@EACH
def test_the_order_of_samples_does_not_change_what_a_method_of_laws_gives(method: str) -> None:
    a, b = sides(method, 60, 41)
    one, other = fitted(method, a, b), fitted(method, np.random.default_rng(0).permutation(a), b)

    for name, part in one.tensors().items():
        if method == "iti-probe":
            torch.testing.assert_close(part, other.tensors()[name], rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(part, other.tensors()[name]), name


@EACH
def test_the_default_support_is_everywhere_but_for_maps_between_laws(method: str) -> None:
    a, b = sides(method, 60, 41)
    found, between = fitted(method, a, b), method in {"mean", "gaussian", "linear"}

    assert transport.default_support(method) == ("observed" if between else "unbounded")
    assert torch.equal(
        found.low, torch.from_numpy(a.min(0)).float() if between else torch.full_like(found.low, -torch.inf)
    )
    assert torch.equal(
        found.high, torch.from_numpy(a.max(0)).float() if between else torch.full_like(found.low, torch.inf)
    )


def test_a_contrast_pair_is_its_difference() -> None:
    found = transport.fit("actadd", exact(np.array([[1.0, 2.0]])), exact(np.array([[4.0, 0.5]])))

    assert found.tensors()["shift"].tolist() == [3.0, -1.5]


def test_sides_without_pairs_are_refused_and_told_what_does_without() -> None:
    with pytest.raises(PairsError, match="found 3 and 4; give as many of either, or take caa"):
        transport.fit("actadd", exact(np.zeros((3, 1))), exact(np.zeros((4, 1))))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.8, 0.999])
def test_the_threshold_decides_which_neurons_are_set(threshold: float) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(np.linspace(-2, 2, 9), 1, (40, 9)), generator.normal(size=(60, 9))
    found = transport.fit("det-zero", exact(a), exact(b), threshold=threshold)
    detects = np.array([precision(x, y) > threshold for x, y in zip(a.T, b.T, strict=True)])

    assert found.moves.tolist() == detects.tolist()
    np.testing.assert_allclose(found.tensors()["shift"], np.where(detects, b.mean(0), 0), rtol=1e-6)


def test_where_cells_leave_the_precision_open_the_error_is_the_jump() -> None:
    # The middle samples of both sides share a cell: which is higher is open.
    a, b = np.array([[0.0], [0.5], [1.0]]), np.array([[0.0], [0.4], [1.0]])
    source, target = (binned(side, [np.array([0.0, 1.0])]) for side in (a, b))
    least, most = average_precision_bounds(source, target)
    assert least < most

    inside, below = (transport.fit("det-zero", source, target, threshold=at) for at in (float(least + most) / 2, 0.1))
    beyond = transport.fit("det-zero", source, target, threshold=float(most) + 0.01)
    assert all(float(inside.error[0]) >= abs(x - b.mean()) for x in (0.0, 1.0))
    assert float(inside.error[0]) <= 1 + abs(a.mean() - b.mean())
    assert (below.moves.item(), beyond.moves.item()) == (True, False)
    assert max(float(below.error[0]), float(beyond.error[0])) < 1e-5


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_is_no_average_precision_is_refused(threshold: float) -> None:
    law = exact(np.zeros((3, 1)))
    with pytest.raises(ThresholdError, match="at least 0 and below 1"):
        transport.fit("det-zero", law, law, threshold=threshold)


def test_chance_is_the_share_of_the_source_for_a_dead_neuron() -> None:
    more, fewer = exact(np.zeros((5, 1))), exact(np.zeros((4, 1)))

    assert transport.fit("det-zero", more, fewer).moves.tolist() == [True]
    assert transport.fit("det-zero", fewer, more).moves.tolist() == [False]


def test_a_probe_without_samples_is_refused_and_told_where_they_are() -> None:
    law = exact(np.zeros((3, 2)))
    with pytest.raises(SamplesError, match=r"pass samples=\(source, target\)"):
        transport.fit("iti-probe", law, law)
    with pytest.raises(ShapeError, match="the laws' 2 neurons"):
        transport.fit("iti-probe", law, law, samples=(torch.zeros(3, 4), torch.zeros(3, 4)))
