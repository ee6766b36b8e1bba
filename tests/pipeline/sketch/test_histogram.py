import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.sketch.arrays import MAX_SAMPLES
from pipeline.sketch.errors import CountOverflowError
from pipeline.sketch.frame import WIDENING
from tests.pipeline.sketch import reference
from tests.pipeline.sketch.columns import ALL_KINDS, samples
from tests.pipeline.sketch.conformance import SMALL, SketchConformance, law, pilot, same

ONE = Frame(torch.zeros(1), torch.zeros(1).int(), torch.zeros(1).int() + WIDENING, torch.zeros(1).int())


class TestHistogram(SketchConformance):
    def empty(self, frame: Frame, grid: Grid) -> HistogramSketch:
        return HistogramSketch.empty(frame, grid)

    def read(self, words: torch.Tensor, grid: Grid) -> HistogramSketch:
        return HistogramSketch.from_words(words, grid)

    @law
    @given(values=samples(max_rows=40, kinds=ALL_KINDS), grid=st.sampled_from([Grid(), SMALL]))
    def test_it_counts_as_the_definition_says(self, values: torch.Tensor, grid: Grid) -> None:
        frame = pilot(values)
        sketch = self.empty(frame, grid)
        sketch.update(values)
        arrays = sketch.arrays

        for neuron, column in enumerate(values.t().numpy()):
            own = reference.parts(frame, neuron)
            counted = arrays.counts[neuron].nonzero()[:, 0].tolist()
            second = (int(arrays.second_high[neuron]) << 32) + int(arrays.second_low[neuron])

            assert arrays.exponent[neuron] == reference.exponent(column, own, grid.octaves)
            assert {cell: int(arrays.counts[neuron, cell]) for cell in counted} == reference.counts(
                column, own, grid.precision, grid.octaves
            )
            first, square, far = reference.moments(column, own)
            assert (int(arrays.first[neuron]), second % 2**96, int(arrays.far[neuron])) == (first, square % 2**96, far)
            assert 0 <= int(arrays.second_low[neuron]) < 2**32

    def test_a_distance_beyond_float32_takes_the_widest_scale(self) -> None:
        frame = Frame(torch.tensor([-3e38]), *(tensor for tensor in list(ONE.to_tensors().values())[1:]))
        far, near = HistogramSketch.empty(frame), HistogramSketch.empty(frame)
        far.update(torch.tensor([[3e38], [-3e38]]))
        near.update(torch.tensor([[-3e38]]))

        assert far.arrays.exponent.tolist() == [WIDENING]
        assert far.arrays.counts[0, [Grid().atom, -1]].tolist() == [1, 1]
        assert same(far.merge(near), near.merge(far))


def test_values_up_to_1e5_scales_are_held_by_bounded_cells() -> None:
    sketch = HistogramSketch.empty(ONE)
    sketch.update(torch.tensor([[2.0**18], [-1e5]]))

    assert sketch.arrays.exponent.tolist() == [WIDENING]
    assert not sketch.health().overflow.any()

    sketch.update(torch.tensor([[2.0**18]]).nextafter(torch.tensor(torch.inf)))
    assert sketch.arrays.counts[0, [0, -1]].tolist() == [0, 1]
    assert sketch.health().overflow.tolist() == [1 / 3]


def test_a_shrunk_scale_a_moved_centre_and_a_grown_scale_are_seen() -> None:
    still = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    change, shift = torch.tensor([1.0, 1e-2, 1.0, 1e7, 0.0]), torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0])
    sketch = HistogramSketch.empty(Frame.from_pilot(still[:256]))
    sketch.update(still * change + shift)
    health = sketch.health()

    # The last neuron died, its value is not at the centre: all of it is in one cell.
    assert health.misfit.tolist() == [False, True, True, True, True]
    assert (health.largest_cell[[1, 2, 4]] > 0.1).all()
    assert health.overflow[3] > 0.5
    assert health.largest_cell[0] < 0.02


def test_a_neuron_that_stays_at_its_centre_fits() -> None:
    sketch = HistogramSketch.empty(Frame.from_pilot(torch.zeros(9, 2)))
    assert not sketch.health().misfit.any()
    sketch.update(torch.zeros(1000, 2))
    assert not sketch.health().misfit.any()


def test_no_count_can_wrap() -> None:
    sketch = HistogramSketch.empty(ONE)
    sketch.arrays.counts[0, 5] = MAX_SAMPLES - 2
    sketch.update(torch.ones(2, 1))
    two = HistogramSketch.empty(ONE)
    two.update(torch.ones(2, 1))
    before = sketch.to_words()

    for refused in (lambda: sketch.update(torch.ones(1, 1)), lambda: sketch.fold(two), lambda: two.merge(sketch)):
        with pytest.raises(CountOverflowError, match=r"it counts to 2147483647, so sketch fewer"):
            refused()
    assert torch.equal(sketch.to_words(), before)
    assert sketch.num_samples == MAX_SAMPLES


def test_a_dead_neuron_that_comes_alive_steps_through_no_scales() -> None:
    frame = Frame.from_pilot(torch.zeros(4, 1))
    dead = HistogramSketch.empty(frame)
    dead.update(torch.zeros(100, 1))
    alive = HistogramSketch.empty(frame)
    alive.update(torch.tensor([[3.0], [0.0]]))

    assert dead.arrays.exponent.tolist() == [-100]
    assert alive.arrays.exponent.tolist() == [-12]
    assert same(dead.merge(alive), alive.merge(dead))
    assert dead.merge(alive).arrays.counts[0, Grid().atom] == 101


def test_a_part_is_a_view_that_a_reducer_may_fold_into() -> None:
    frame = Frame.from_pilot(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)))
    whole, other = HistogramSketch.empty(frame), HistogramSketch.empty(frame)
    other.update(torch.randn(30, 4, generator=torch.Generator().manual_seed(2)) * 1e4)
    for part in (slice(0, 1), slice(1, 4)):
        whole.neurons(part).fold(other.neurons(part))

    assert same(whole, other)


def test_folding_a_sketch_into_itself_counts_it_twice() -> None:
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(3))
    sketch, twice = (HistogramSketch.empty(Frame.from_pilot(values)) for _ in range(2))
    sketch.update(values)
    twice.update(torch.cat([values, values]))
    sketch.fold(sketch)

    assert same(sketch, twice)
