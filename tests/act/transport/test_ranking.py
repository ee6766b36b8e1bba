from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from act.marginal import Marginal
from act.transport.ranking import auroc, auroc_bounds, average_precision, average_precision_bounds
from tests.laws import binned, exact, graded

COUNTS = st.integers(1, 24)
SEEDS = st.integers(0, 2**32 - 1)


def area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each neuron, by SciPy's Mann-Whitney U."""
    return np.array([stats.mannwhitneyu(x, y).statistic / (len(a) * len(b)) for x, y in zip(a.T, b.T, strict=True)])


def precision(a: np.ndarray, b: np.ndarray) -> float:
    """Average precision of one neuron from its definition, threshold by threshold, in fractions."""
    total, recalled = Fraction(0), Fraction(0)
    for score in sorted({*a, *b}, reverse=True):
        right, wrong = int((a >= score).sum()), int((b >= score).sum())
        recall = Fraction(right, len(a))
        total += (recall - recalled) * Fraction(right, right + wrong)
        recalled = recall
    return float(total)


def precisions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([precision(x, y) for x, y in zip(a.T, b.T, strict=True)])


def drawn(num_source: int, num_target: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of four neurons, with more ties from neuron to neuron; the last is constant on both sides."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(0.3, 1, (num_source, 4)), generator.standard_t(2, (num_target, 4))
    for neuron, step in enumerate((1e-9, 0.5, 2.0, 1e9)):
        a[:, neuron], b[:, neuron] = (np.round(side[:, neuron] / step) * step for side in (a, b))
    return a, b


def in_cells(samples: np.ndarray, seed: int, edge_error: float = 0.0) -> Marginal:
    """The law of the samples in a few cells of random ends, some of which are samples."""
    generator = np.random.default_rng(seed)
    edges = [np.unique(np.concatenate([generator.normal(size=4), generator.choice(x, 2)])) for x in samples.T]
    return binned(samples, edges, edge_error=edge_error)


@given(COUNTS, COUNTS, SEEDS)
def test_of_samples_the_area_is_the_mann_whitney_statistic(num_source: int, num_target: int, seed: int) -> None:
    a, b = drawn(num_source, num_target, seed)

    np.testing.assert_allclose(auroc(exact(a), exact(b)), area(a, b), rtol=1e-15)
    for bound in auroc_bounds(exact(a), exact(b)):
        assert torch.equal(bound, auroc(exact(a), exact(b)))


@given(COUNTS, COUNTS, SEEDS)
def test_of_samples_the_precision_is_that_of_the_definition(num_source: int, num_target: int, seed: int) -> None:
    a, b = drawn(num_source, num_target, seed)

    np.testing.assert_allclose(average_precision(exact(a), exact(b)), precisions(a, b), rtol=1e-14)
    for bound in average_precision_bounds(exact(a), exact(b)):
        assert torch.equal(bound, average_precision(exact(a), exact(b)))


@given(COUNTS, COUNTS, SEEDS, st.sampled_from(["source", "target", "both"]), st.sampled_from([0.0, 0.2]))
def test_of_cells_the_bounds_hold_the_samples_and_the_estimate(
    num_source: int, num_target: int, seed: int, side: str, error: float
) -> None:
    a, b = drawn(num_source, num_target, seed)
    source = exact(a) if side == "target" else in_cells(a, seed, error)
    target = exact(b) if side == "source" else in_cells(b, seed + 1, error)

    for found, (least, most), wanted in (
        (auroc(source, target), auroc_bounds(source, target), area(a, b)),
        (average_precision(source, target), average_precision_bounds(source, target), precisions(a, b)),
    ):
        assert (least.numpy() <= wanted + 1e-15).all()
        assert (wanted <= most.numpy() + 1e-15).all()
        assert (least <= found).all()
        assert (found <= most).all()
        assert (least >= 0).all()
        assert (most <= 1).all()


def test_the_bounds_of_the_area_are_met_by_samples_at_the_ends_of_cells() -> None:
    cells = [np.array([0.0, 1.0, 2.0])]
    a, b = np.array([[0.0], [0.5], [0.6], [2.0]]), np.array([[0.0], [0.5], [1.5], [2.0]])
    source, target = binned(a, cells), binned(b, cells)
    far_a, near_b = np.array([[0.0], [1.0], [1.0], [2.0]]), np.array([[0.0], [0.0], [1.0], [2.0]])
    near_a, far_b = np.array([[0.0], [0.0], [0.0], [2.0]]), np.array([[0.0], [1.0], [2.0], [2.0]])

    least, most = auroc_bounds(source, target)

    assert most.item() == area(far_a, near_b).item()
    assert least.item() == area(near_a, far_b).item()


def points(values: list[float], counts: list[int]) -> Marginal:
    """The law of one neuron in cells of no width."""
    ends = torch.tensor([values], dtype=torch.float64)
    none = {name: torch.zeros(1, dtype=torch.float64) for name in ("mean_error", "deviation_error", "edge_error")}
    one = torch.ones(1, dtype=torch.float64)
    return Marginal.from_cells(ends, ends, torch.tensor([counts]), mean=one, variance=one, **none)


def test_ties_in_cells_of_no_width_count_half() -> None:
    a, b = np.repeat([[0.0], [1.0]], [88, 12], axis=0), np.repeat([[0.0], [1.0]], [60, 40], axis=0)
    source, target = points([0.0, 1.0], [88, 12]), points([0.0, 1.0], [60, 40])

    assert auroc(source, target).item() == area(a, b).item()
    assert average_precision(source, target).item() == pytest.approx(precision(a[:, 0], b[:, 0]), rel=1e-11)


def test_graded_cells_are_near_the_samples() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(5000, 3)), generator.standard_t(3, size=(4000, 3))
    b += np.array([0.0, 0.5, 3.0])
    source, target = (binned(side, [graded(column, 32) for column in side.T]) for side in (a, b))

    np.testing.assert_allclose(auroc(source, target), area(a, b), atol=2e-4)
    np.testing.assert_allclose(average_precision(source, target), precisions(a, b), atol=2e-3)
    least, most = auroc_bounds(source, target)
    assert (most - least < 0.05).all()


def test_neither_blocks_nor_neighbours_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = drawn(40, 31, 0)
    laws = (exact(a), exact(b)), (in_cells(a, 0), in_cells(b, 1))
    whole = [(auroc(*pair), average_precision(*pair)) for pair in laws]
    monkeypatch.setattr("act.marginal.WORK_SIZE", 1)

    for pair, wanted in zip(laws, whole, strict=True):
        assert torch.equal(auroc(*pair), wanted[0])
        assert torch.equal(average_precision(*pair), wanted[1])


def test_counts_beyond_float32_stay_whole_numbers() -> None:
    num = 2_000_000_001
    # 0 against 0, 1 against 0, 1 against 1.
    wanted = (Fraction(num, 2) + 1 + Fraction(num, 2)) / (num + 1) ** 2

    assert auroc(points([0.0, 1.0], [num, 1]), points([0.0, 1.0], [1, num])).item() == float(wanted)
