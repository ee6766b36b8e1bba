import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sketch import ExactSketch, Frame, Grid, HistogramSketch
from pipeline.sketch.errors import ExactLimitError, LostValuesError, SketchShapeError, SketchWordsError
from pipeline.sketch.exact import LIMIT
from tests.pipeline.sketch.columns import ALL_KINDS, columns, samples
from tests.pipeline.sketch.conformance import SMALL, SketchConformance, law, pilot, same


class TestExact(SketchConformance):
    def empty(self, frame: Frame, grid: Grid) -> ExactSketch:
        return ExactSketch.empty(frame, grid)

    def read(self, words: torch.Tensor, grid: Grid) -> ExactSketch:
        return ExactSketch.from_words(words, grid)


def sketched(kind: type[ExactSketch] | type[HistogramSketch], values: torch.Tensor, frame: Frame, grid: Grid):
    sketch = kind.empty(frame, grid)
    sketch.update(values)
    return sketch


@law
@given(values=samples(kinds=ALL_KINDS), grid=st.sampled_from([Grid(), SMALL]))
def test_its_histogram_is_that_of_counting_from_the_start(values: torch.Tensor, grid: Grid) -> None:
    frame = pilot(values)
    exact = sketched(ExactSketch, values, frame, grid)

    assert same(exact.to_histogram(), sketched(HistogramSketch, values, frame, grid))
    other = Frame.from_pilot(values)
    assert same(exact.to_histogram(other, Grid(3, 9)), sketched(HistogramSketch, values, other, Grid(3, 9)))


@pytest.mark.parametrize("kinds", [(ExactSketch, ExactSketch), (ExactSketch, HistogramSketch)])
@pytest.mark.parametrize("rows", [(LIMIT, 1), (600, 600), (1, LIMIT)])
def test_past_the_limit_a_merge_is_the_histogram_of_all(kinds, rows) -> None:
    values = columns(sum(rows), 5, ALL_KINDS)
    frame, grid = pilot(values), Grid()
    first, second = (sketched(kind, part, frame, grid) for kind, part in zip(kinds, values.split(rows), strict=True))
    whole = sketched(HistogramSketch, values, frame, grid)

    assert same(whole, first.merge(second), second.merge(first))
    assert first.num_samples == rows[0]


def test_up_to_the_limit_a_merge_keeps_the_values() -> None:
    values = columns(LIMIT, 6)
    frame, grid = pilot(values), Grid()
    first, second = (sketched(ExactSketch, part, frame, grid) for part in values.split(LIMIT - 24))
    merged = first.merge(second)

    assert same(sketched(ExactSketch, values, frame, grid), merged)
    assert merged.marginal().is_exact
    np.testing.assert_array_equal(merged.values(), np.sort(values.numpy() + 0.0, axis=0).T)


def test_past_the_limit_nothing_is_kept_in_place() -> None:
    values = columns(LIMIT, 7)
    frame, grid = pilot(values), Grid()
    full, one = sketched(ExactSketch, values, frame, grid), sketched(ExactSketch, values[:1], frame, grid)
    before = full.to_words()

    for refused in (lambda: full.update(values[:1]), lambda: full.fold(one), lambda: one.fold(full)):
        with pytest.raises(ExactLimitError, match="would keep 1025 values a neuron; it keeps up to 1024"):
            refused()
    with pytest.raises(LostValuesError, match="a HistogramSketch cannot be folded"):
        one.fold(one.to_histogram())
    assert torch.equal(full.to_words(), before)
    assert one.num_samples == 1


def test_all_nans_are_one() -> None:
    bits = torch.tensor([[0x7FC00000], [0x7F800001], [-1]], dtype=torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.ones(1, 1)])
    frame, grid = Frame.from_pilot(torch.ones(1, 1)), Grid()

    assert same(sketched(ExactSketch, values, frame, grid), sketched(ExactSketch, values.flip(0), frame, grid))
    assert sketched(ExactSketch, values, frame, grid).nonfinite.nans.tolist() == [3]


def test_a_histogram_takes_in_kept_values() -> None:
    values = columns(60, 8, ALL_KINDS)
    frame, grid = pilot(values), Grid()
    histogram = sketched(HistogramSketch, values[:20], frame, grid)
    histogram.fold(sketched(ExactSketch, values[20:], frame, grid))

    assert same(histogram, sketched(HistogramSketch, values, frame, grid))


def test_words_out_of_order_are_refused() -> None:
    words = sketched(ExactSketch, columns(9, 9), pilot(columns(9, 9)), Grid()).to_words()
    words[2, :2] = words[2, :2].flip(0)
    words[0, 0], words[0, 8] = words[0, 8].item(), words[0, 0].item()

    with pytest.raises(SketchWordsError, match="not in ascending order"):
        ExactSketch.from_words(words)


def test_the_two_kinds_are_never_the_same() -> None:
    values = columns(9, 9)
    exact = sketched(ExactSketch, values, pilot(values), Grid())

    assert not exact.same_bits(exact.to_histogram())
    assert not exact.to_histogram().same_bits(exact)
    with pytest.raises(SketchWordsError):
        HistogramSketch.from_words(exact.to_words())


def test_a_histogram_of_other_neurons_takes_in_nothing() -> None:
    with pytest.raises(SketchShapeError):
        sketched(ExactSketch, columns(9, 9), Frame.from_pilot(torch.zeros(3, 2)), Grid())
