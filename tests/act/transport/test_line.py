"""The proof that is inside a quantile map: where the map of the samples may be, and how far a line is from it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.marginal import Marginal
from act.transport import knots
from act.transport.line import line_error, map_bounds
from act.transport.quantile import fit_quantile
from tests.act.transport.test_quantile import full, places
from tests.laws import binned, exact, graded

LAWS = st.sampled_from(["samples", "points", "cells", "loose cells"])


def law_of(kind: str, samples: np.ndarray) -> Marginal:
    match kind:
        case "samples":
            return exact(samples)
        case "points":
            columns = [np.unique(column, return_counts=True) for column in samples.T]
            (values, counts), none = columns[0], torch.zeros(1, dtype=torch.float64)
            ends = torch.from_numpy(values)[None]
            moments = dict.fromkeys(("mean_error", "deviation_error", "edge_error"), none)
            mean, variance = torch.from_numpy(samples.mean(0)), torch.from_numpy(samples.var(0))
            return Marginal.from_cells(
                ends, ends, torch.from_numpy(counts)[None], mean=mean, variance=variance, **moments
            )
    return binned(samples, [graded(column, 4) for column in samples.T], edge_error=0.05 * (kind == "loose cells"))


def drawn(num: int, seed: int, step: float) -> np.ndarray:
    """Samples of one neuron, float32 numbers, some of them equal."""
    samples = np.random.default_rng(seed).standard_t(3, (num, 1))
    return (np.round(samples / step) * step).astype(np.float32).astype(np.float64)


CASES = given(
    st.tuples(st.integers(2, 40), st.integers(1, 40)),
    st.tuples(LAWS, LAWS),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-9, 0.5]),
)


@CASES
def test_the_map_of_the_samples_is_between_its_bounds(nums, kinds, seed: int, step: float) -> None:
    a, b = drawn(nums[0], seed, step), drawn(nums[1], seed + 1, step)
    if np.ptp(a) == 0:
        return
    x = places(a[:, 0], torch.zeros(0))
    asked = torch.from_numpy(x)[None]
    least, most = map_bounds(law_of(kinds[0], a), law_of(kinds[1], b), slice(None), (asked, asked))
    wanted = full(a[:, 0], b[:, 0], x)

    assert (least[0].numpy() <= wanted + 1e-12).all()
    assert (wanted <= most[0].numpy() + 1e-12).all()


def test_certain_cells_leave_one_rank_open() -> None:
    a, b = np.arange(5.0)[:, None], 10 * np.arange(5.0)[:, None]
    asked = torch.tensor([[0.0, 1.0, 1.5, 4.0]], dtype=torch.float64)
    least, most = map_bounds(law_of("points", a), law_of("points", b), slice(None), (asked, asked))

    assert least.tolist() == [[0.0, 10.0, 10.0, 40.0]]
    assert most.tolist() == [[10.0, 20.0, 20.0, 40.0]]


@CASES
@pytest.mark.parametrize("most", [64, 96])
def test_the_distance_of_any_line_is_within_its_bound(most: int, nums, kinds, seed: int, step: float) -> None:
    a, b = drawn(nums[0], seed, step), drawn(nums[1], seed + 1, step)
    if np.ptp(a) == 0:
        return
    laws = law_of(kinds[0], a), law_of(kinds[1], b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knots, "MOST_KNOTS", most)
        xs, ys, _ = fit_quantile(*laws)
    x = places(a[:, 0], xs[0])
    line, wanted = np.interp(x, xs[0].double(), ys[0].double()), full(a[:, 0], b[:, 0], x)
    for moved in (-5.0, 0.0, 5.0):
        bound = float(line_error(*laws, xs, ys + moved)[0])
        assert np.abs(line + moved - wanted).max() <= bound + 2e-6 * (5 + np.abs(wanted).max())


def test_the_bound_of_samples_is_met() -> None:
    a, b = drawn(300, 0, 1e-9), drawn(200, 1, 1e-9)
    xs, ys, _ = fit_quantile(exact(a), exact(b))
    x = places(a[:, 0], xs[0])
    line, wanted = np.interp(x, xs[0].double(), ys[0].double()), full(a[:, 0], b[:, 0], x)

    assert float(line_error(exact(a), exact(b), xs, ys)[0]) == pytest.approx(np.abs(line - wanted).max(), rel=0.2)


def test_a_line_that_misses_a_jump_is_that_far_off() -> None:
    a, b = np.array([-1.0, 0.0, 0.0, 0.0, 1.0])[:, None], np.array([0.0, 1.0, 2.0, 3.9, 4.0])[:, None]
    outer, with_top = torch.tensor([[-1.0, 1.0]]), torch.tensor([[-1.0, 0.0, 1.0]])

    # The map comes to 1 before 0, and is 3.9 there.
    past = line_error(exact(a), exact(b), outer, torch.tensor([[0.0, 4.0]]))
    before = line_error(exact(a), exact(b), with_top, torch.tensor([[0.0, 3.9, 4.0]]))
    assert past.item() == pytest.approx(1.9)
    assert before.item() == pytest.approx(2.9)
