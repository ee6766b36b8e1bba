import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.marginal import Marginal
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.sketch.cells import Cells
from tests.pipeline.sketch.columns import samples
from tests.pipeline.sketch.conformance import SMALL, law, pilot

QUANTUM = 2.0**-16


def frame(centre: float = 0.0, exponent: int = 0, *, widest: int = 4, moments: int = 0) -> Frame:
    return Frame(torch.tensor([centre]), *(torch.tensor([e], dtype=torch.int32) for e in (exponent, widest, moments)))


def sketched(values: torch.Tensor, frame: Frame, grid: Grid | None = None) -> HistogramSketch:
    sketch = HistogramSketch.empty(frame, grid)
    sketch.update(values)
    return sketch


def cells_of(sketch: HistogramSketch) -> Cells:
    return Cells.occupied(sketch.frame, sketch.grid, sketch.arrays)


def contain(marginal: Marginal, values: torch.Tensor) -> None:
    """The errors of both moments hold, judged in Python's fractions."""
    for neuron, column in enumerate(values.t().tolist()):
        exact = [Fraction(value) for value in column]
        mean = sum(exact, Fraction()) / len(exact)
        variance = sum(((value - mean) * (value - mean) for value in exact), Fraction()) / len(exact)
        found, error = math.sqrt(marginal.variance[neuron].item()), float(marginal.deviation_error[neuron])
        away = abs(Fraction(float(marginal.mean[neuron])) - mean)
        assert away <= Fraction(float(marginal.mean_error[neuron]))
        # The root itself is rounded, by a relative 2^-53.
        slack = 1 + Fraction(1, 2**50)
        least, most = Fraction(max(0.0, found - error)), Fraction(found + error)
        assert least * least <= variance * slack
        assert variance <= most * most * slack


@law
@given(values=samples(min_rows=1, max_rows=40), grid=st.sampled_from([Grid(), SMALL]))
def test_moments_are_within_their_errors_of_exact_fractions(values: torch.Tensor, grid: Grid) -> None:
    contain(sketched(values, pilot(values), grid).marginal(), values)


@law
@given(values=samples(min_rows=1, max_rows=40), grid=st.sampled_from([Grid(), SMALL]))
def test_every_value_lies_in_its_cell_within_the_edge_error(values: torch.Tensor, grid: Grid) -> None:
    found = cells_of(sketched(values, pilot(values), grid))

    assert (found.counts.sum(1) == len(values)).all()
    for neuron, column in enumerate(values.double().sort(dim=0).values.t()):
        cell = torch.repeat_interleave(torch.arange(found.counts.shape[1]), found.counts[neuron])
        assert (found.lows[neuron][cell] - found.edge_error[neuron] <= column).all()
        assert (column <= found.highs[neuron][cell] + found.edge_error[neuron]).all()


def test_cells_are_those_that_hold_samples_padded_to_the_longest_neuron() -> None:
    values = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.5, 3.0]])
    found = cells_of(sketched(values, Frame.from_pilot(torch.tensor([[0.0, 2.0], [1.0, 1.0], [-1.0, 3.0]]))))

    assert found.counts.tolist() == [[2, 1, 0], [1, 1, 1]]
    assert found.lows[0, 0] == found.highs[0, 0] == 0
    assert found.lows[0, 2] == found.highs[0, 2] == 1.5
    assert found.lows[0, 1] < 1.5 == found.highs[0, 1]
    # The atom of the second neuron is at its centre; its outer cells end at its extremes.
    assert found.lows[1, 1] == found.highs[1, 1] == 2
    assert found.lows[1, 0] == 1
    assert found.highs[1, 2] == 3


def test_open_ends_reach_to_the_extremes() -> None:
    found = cells_of(sketched(torch.tensor([[-1e9], [0.0], [1e8]]), frame()))

    assert found.counts.tolist() == [[1, 1, 1]]
    assert found.lows.tolist() == [[-1e9, 0, 2.0**18]]
    assert found.highs.tolist() == [[-(2.0**18), 0, 1e8]]


def test_a_key_that_was_rounded_out_of_its_cell_is_within_the_edge_error() -> None:
    # 1 + 2^-24 - c is between two floats for a centre with more digits, and is rounded to the edge at 1.
    centre = -(2.0**-25)
    values = torch.tensor([[1.0], [2.0], [-2.0]])
    sketch = sketched(values, frame(centre))
    cell, found = int(sketch.arrays.counts[0].nonzero()[1]), cells_of(sketch)

    assert cell == Grid().atom + 32
    assert found.highs[0, 1] == 1 + centre < 1
    assert 0 < 1 - found.highs[0, 1] <= found.edge_error[0] < 2.0**-22


@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e30, 1e-40])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_a_constant_is_known_exactly(value: float, rows: int) -> None:
    values = torch.full((rows, 1), value)
    marginal = sketched(values, frame()).marginal()

    assert marginal.mean.item() == values[0].double().item()
    assert marginal.variance.item() == marginal.mean_error.item() == marginal.deviation_error.item() == 0
    assert torch.equal(marginal.quantile(torch.tensor([0.0, 0.5, 1.0])).float(), values[:1].expand(3, 1))


@pytest.mark.parametrize("outlier", [2.0**28 - 2**6, 2.0**28, -1e12, 3e38])
def test_values_too_far_for_the_sums_leave_the_moments_to_the_cells(outlier: float) -> None:
    values = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    values[3] = outlier
    sketch = sketched(values, frame())
    marginal = sketch.marginal()

    assert sketch.arrays.far.item() == (abs(outlier) >= 2.0**28)
    contain(marginal, values)
    if sketch.arrays.far.item():
        # Only the bulk is uncertain, by its cells: the outlier is an extreme, which is known.
        assert QUANTUM < marginal.mean_error.item() < 2.0**-3 + 1e-9 * abs(outlier)
    else:
        assert marginal.mean_error.item() < 2 * QUANTUM + 2.0**-23 * abs(outlier)


def test_two_outliers_on_one_side_make_the_error_wide_and_not_wrong() -> None:
    values = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    values[3], values[4] = 1e12, 5e11
    marginal = sketched(values, frame()).marginal()

    contain(marginal, values)
    assert marginal.mean_error.item() > 1e8


def test_sums_that_may_have_wrapped_are_not_used() -> None:
    # 300 squares of 2^88 quanta pass 2^95, and stand for what may have wrapped. The scale reaches them.
    values = torch.full((300, 1), 2.0**27.9)
    values[0] = 0.0
    sketch = sketched(values, frame(widest=20))
    marginal = sketch.marginal()

    assert sketch.arrays.far.item() == 0
    contain(marginal, values)
    assert marginal.mean_error.item() > 2.0**20


def test_the_law_of_a_million_values_is_as_good_as_promised() -> None:
    """Rank error and moments of notes that the defaults were chosen by."""
    values = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0))
    marginal = sketched(values, Frame.from_pilot(values[:256])).marginal()
    probs = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    truth = torch.from_numpy(np.quantile(values.double().numpy(), probs.numpy(), axis=0))
    iqr = 1.349

    assert marginal.rank_error.item() < 0.02
    assert (marginal.cdf(truth) - probs[:, None]).abs().max() < 5e-4
    assert (marginal.quantile(probs) - truth).abs().max() < 5e-3 * iqr
    assert marginal.mean_error.item() < 2 * QUANTUM
    assert abs(marginal.mean.item() - values.double().mean().item()) < 1e-7
