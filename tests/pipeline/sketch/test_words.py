import pytest
import torch

from pipeline.sketch import EXTRA_WORDS, Grid, HistogramSketch
from pipeline.sketch.errors import SketchWordsError
from tests.pipeline.sketch.columns import ALL_KINDS, columns
from tests.pipeline.sketch.conformance import pilot

VALUES = columns(80, 0, ALL_KINDS)
CELLS = Grid().num_cells

# Places of words after the counts.
KIND, CENTRE, EXPONENT, WIDEST, MOMENT, SCALE, LOW = range(CELLS, CELLS + 7)
NANS = CELLS + 13


def words() -> torch.Tensor:
    sketch = HistogramSketch.empty(pilot(VALUES))
    sketch.update(VALUES)
    return sketch.to_words()


def test_a_row_is_its_counts_and_a_fixed_number_of_words() -> None:
    sketch = HistogramSketch.empty(pilot(VALUES))
    sketch.update(VALUES)
    found = sketch.to_words()

    assert found.shape == (len(ALL_KINDS), CELLS + EXTRA_WORDS)
    assert torch.equal(found[:, :CELLS], sketch.arrays.counts)
    assert (found[:, KIND] == 0x5301050F).all()
    assert torch.equal(found[:, CENTRE].contiguous().view(torch.float32), sketch.frame.centre)
    assert torch.equal(found[:, NANS].long(), VALUES.isnan().sum(0))


def test_every_word_comes_back_whatever_its_bits() -> None:
    sketch = HistogramSketch.from_words(words())
    neurons = torch.arange(sketch.num_neurons)
    sketch.arrays.first.copy_(-(2**63) + 977 * neurons)
    sketch.arrays.second_high.copy_(2**63 - 1 - 977 * neurons)
    sketch.arrays.second_low.copy_((1 << 32) - 1 - neurons)
    sketch.arrays.far.copy_(2**31 - 1 - neurons)
    read = HistogramSketch.from_words(sketch.to_words())

    assert read.frame == sketch.frame
    for name, tensor in sketch.arrays.tensors().items():
        assert torch.equal(getattr(read.arrays, name), tensor), name
        assert getattr(read.arrays, name).dtype == tensor.dtype


@pytest.mark.parametrize("neurons", [slice(0, 1), slice(None)])
def test_words_are_copied(neurons: slice) -> None:
    written = words()[neurons]
    before = written.clone()
    HistogramSketch.from_words(written).update(VALUES[:, neurons])

    assert torch.equal(written, before)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (KIND, 0x5401050F, "found the mark 5401050f, wanted 5301050f"),
        (KIND, 0x5301060F, "found the mark 5301060f"),
        (CENTRE, 0x7F800000, "neuron 4 has a centre that is not finite"),
        (EXPONENT, -101, "an exponent out of range"),
        (WIDEST, 115, "a widest exponent out of range"),
        (MOMENT, 115, "a moment exponent out of range"),
        (SCALE, 120, "an exponent outside its frame"),
        (5, -1, "a count below 0"),
        (5, 3, "another number of samples than its first neuron"),
        (NANS, 7, "another number of samples than its first neuron"),
        (LOW, 0x7F800000, "extremes that do not belong to its counts"),
    ],
)
def test_damaged_words_are_refused(place: int, value: int, problem: str) -> None:
    damaged = words()
    damaged[4, place] = value

    with pytest.raises(SketchWordsError, match=problem):
        HistogramSketch.from_words(damaged)


def test_words_of_another_grid_are_refused() -> None:
    with pytest.raises(SketchWordsError, match=rf"wanted \[neurons, {Grid(6, 15).num_cells + EXTRA_WORDS}\]"):
        HistogramSketch.from_words(words(), Grid(6, 15))
