"""The laws that every sketch obeys. A new kind of sketch passes `SketchConformance` or is none."""

from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act.errors import EmptyMarginalError, NotFiniteError
from pipeline.sketch import AbstractSketch, Frame, Grid, merge_tree
from pipeline.sketch.errors import OtherFrameError, SketchShapeError, SketchWordsError
from tests.pipeline.sketch.columns import ALL_KINDS, KINDS, columns, samples

#: Each example sketches all kinds of columns several times.
law = settings(max_examples=25, suppress_health_check=[HealthCheck.differing_executors])

SMALL = Grid(precision=2, octaves=4)
PROBS = torch.tensor([0.0, 0.01, 0.1, 0.25, 0.5, 0.77, 0.9, 0.99, 1.0], dtype=torch.float64)

seeds = st.integers(0, 2**32 - 1)


def pilot(values: torch.Tensor) -> Frame:
    """The frame of the first few rows only, so that what follows must often widen it."""
    return Frame.from_pilot(values[:7])


def same(first: AbstractSketch, *others: AbstractSketch) -> bool:
    """Whether all are the same bits, by the sketch's own word and by its integers."""
    words = first.to_words()
    return all(first.same_bits(other) and torch.equal(words, other.to_words()) for other in others)


class SketchConformance(ABC):
    """What is true of sketches of up to 1024 samples, whatever they are made of."""

    @abstractmethod
    def empty(self, frame: Frame, grid: Grid) -> AbstractSketch:
        """A sketch of no samples."""

    @abstractmethod
    def read(self, words: torch.Tensor, grid: Grid) -> AbstractSketch:
        """The sketch whose words these are."""

    def sketch(self, *batches: torch.Tensor, frame: Frame, grid: Grid | None = None) -> AbstractSketch:
        sketch = self.empty(frame, grid or Grid())
        for batch in batches:
            sketch.update(batch)
        return sketch

    # The algebra.

    @law
    @given(values=samples(kinds=ALL_KINDS))
    def test_the_empty_sketch_is_neutral(self, values: torch.Tensor) -> None:
        frame = pilot(values)
        full, empty = self.sketch(values, frame=frame), self.sketch(frame=frame)

        assert same(full, full.merge(empty), empty.merge(full), self.sketch(values[:0], values, frame=frame))

    @law
    @given(a=samples(kinds=ALL_KINDS), b=samples(kinds=ALL_KINDS), grid=st.sampled_from([Grid(), SMALL]))
    def test_merging_commutes(self, a: torch.Tensor, b: torch.Tensor, grid: Grid) -> None:
        frame = pilot(a)
        first, second = self.sketch(a, frame=frame, grid=grid), self.sketch(b, frame=frame, grid=grid)

        assert same(first.merge(second), second.merge(first))

    @law
    @given(
        a=samples(kinds=ALL_KINDS),
        b=samples(kinds=ALL_KINDS),
        c=samples(kinds=ALL_KINDS),
        grid=st.sampled_from([Grid(), SMALL]),
    )
    def test_merging_associates(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, grid: Grid) -> None:
        frame = pilot(a)
        first, second, third = (self.sketch(part, frame=frame, grid=grid) for part in (a, b, c))

        assert same(first.merge(second).merge(third), first.merge(second.merge(third)))

    @law
    @given(values=samples(max_rows=90, kinds=ALL_KINDS), data=st.data())
    def test_every_split_of_the_rows_gives_the_same_bits(self, values: torch.Tensor, data: st.DataObject) -> None:
        frame, rows = pilot(values), len(values)
        cuts = [0, *sorted(data.draw(st.lists(st.integers(0, rows), max_size=5))), rows]
        parts = [values[start:stop] for start, stop in pairwise(cuts)]
        whole = self.sketch(values, frame=frame)
        sketches = [self.sketch(part, frame=frame) for part in data.draw(st.permutations(parts))]

        folded = self.sketch(frame=frame)
        for sketch in sketches:
            folded.fold(sketch)

        assert same(whole, self.sketch(*parts, frame=frame), folded, merge_tree(sketches))

    @law
    @given(values=samples(kinds=ALL_KINDS), seed=seeds)
    def test_the_order_of_rows_leaves_no_trace(self, values: torch.Tensor, seed: int) -> None:
        frame = pilot(values)
        shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]

        assert same(self.sketch(values, frame=frame), self.sketch(shuffled, frame=frame))

    @law
    @given(a=samples(kinds=ALL_KINDS), b=samples(kinds=ALL_KINDS))
    def test_folding_is_merging_in_place(self, a: torch.Tensor, b: torch.Tensor) -> None:
        frame = pilot(a)
        first, second = self.sketch(a, frame=frame), self.sketch(b, frame=frame)
        before, after = first.to_words(), second.to_words()

        merged = first.merge(second)
        assert torch.equal(first.to_words(), before)
        assert torch.equal(second.to_words(), after)

        first.fold(second)
        assert same(first, merged)
        assert torch.equal(second.to_words(), after)

    @law
    @given(values=samples(kinds=ALL_KINDS))
    def test_a_part_of_the_neurons_is_sketched_alone(self, values: torch.Tensor) -> None:
        frame, part = pilot(values), slice(3, 11)

        assert same(self.sketch(values, frame=frame).neurons(part), self.sketch(values[:, part], frame=frame[part]))

    # Storage.

    @law
    @given(values=samples(kinds=ALL_KINDS), more=samples(kinds=ALL_KINDS), grid=st.sampled_from([Grid(), SMALL]))
    def test_words_say_all(self, values: torch.Tensor, more: torch.Tensor, grid: Grid) -> None:
        frame = pilot(values)
        written = self.sketch(values, frame=frame, grid=grid)
        words = written.to_words()
        read = self.read(words, grid)

        assert words.dtype == torch.int32
        assert same(written, read)
        assert read.num_samples == len(values)
        read.update(more)
        assert same(read, self.sketch(values, more, frame=frame, grid=grid))
        assert torch.equal(words, written.to_words())

    def test_a_row_of_words_says_all_about_its_neuron(self) -> None:
        values = columns(50, 0, ALL_KINDS)
        sketch = self.sketch(values, frame=pilot(values))

        assert same(self.read(sketch.to_words()[4:9], Grid()), sketch.neurons(slice(4, 9)))

    @pytest.mark.parametrize("word", ["kind", "shape", "dtype"])
    def test_other_words_are_refused(self, word: str) -> None:
        values = columns(20, 0)
        words = self.sketch(values, frame=pilot(values)).to_words()
        wrong = {"kind": words.flip(1), "shape": words[:, :-1], "dtype": words.long()}[word]

        with pytest.raises(SketchWordsError, match="hold no sketch"):
            self.read(wrong, Grid())

    # The law.

    @law
    @given(values=samples(min_rows=1))
    def test_the_law_holds_the_samples(self, values: torch.Tensor) -> None:
        sketch = self.sketch(values, frame=pilot(values))
        marginal = sketch.marginal()

        assert marginal.num_samples == sketch.num_samples == len(values)
        assert marginal.num_neurons == sketch.num_neurons == len(KINDS)
        assert torch.equal(marginal.low.double(), values.amin(0).double() + 0.0)
        assert torch.equal(marginal.high.double(), values.amax(0).double() + 0.0)

    @law
    @given(values=samples(min_rows=1, max_rows=200))
    def test_proven_bounds_hold_the_truth(self, values: torch.Tensor) -> None:
        marginal, truth = self.sketch(values, frame=pilot(values)).marginal(), values.double().numpy()
        quantiles = torch.from_numpy(np.quantile(truth, PROBS.numpy(), axis=0))
        mean, deviation = torch.from_numpy(truth.mean(0)), torch.from_numpy(truth.std(0))
        # NumPy's own sums and interpolation.
        rounding = torch.from_numpy(1e-13 * np.abs(truth).max(0))

        lower, upper = marginal.quantile_bounds(PROBS)
        assert (lower - rounding <= quantiles).all()
        assert (quantiles <= upper + rounding).all()
        assert ((marginal.mean - mean).abs() <= marginal.mean_error + rounding).all()
        assert ((marginal.variance.sqrt() - deviation).abs() <= marginal.deviation_error + rounding).all()

    @law
    @given(values=samples(min_rows=1, max_rows=200), seed=seeds)
    def test_proven_bounds_of_shares_hold_the_truth(self, values: torch.Tensor, seed: int) -> None:
        marginal = self.sketch(values, frame=pilot(values)).marginal()
        # At samples, beside them, and between two of them.
        rng = np.random.default_rng(seed)
        some, others = values[rng.integers(0, len(values), 6)], values[rng.integers(0, len(values), 6)]
        points = torch.cat([some, some.nextafter(others), some / 2 + others / 2])
        truth = (values[None] <= points[:, None]).double().mean(dim=1)

        lower, upper = marginal.cdf_bounds(points)

        assert (lower <= truth).all()
        assert (truth <= upper).all()

    @law
    @given(values=samples(min_rows=1, max_rows=200))
    def test_quantiles_and_shares_ascend_and_invert_each_other(self, values: torch.Tensor) -> None:
        marginal = self.sketch(values, frame=pilot(values)).marginal()
        quantiles = marginal.quantile(PROBS)
        shares, below = marginal.cdf(quantiles), marginal.cdf_below(quantiles)
        slack = marginal.rank_error + 1.5 / len(values)

        assert (quantiles.diff(dim=0) >= 0).all()
        assert (shares.diff(dim=0) >= 0).all()
        assert (below - slack <= PROBS[:, None]).all()
        assert (PROBS[:, None] <= shares + slack).all()

    # What is not finite.

    @law
    @given(values=samples(kinds=ALL_KINDS))
    def test_what_is_not_finite_is_counted_apart(self, values: torch.Tensor) -> None:
        frame = pilot(values)
        sketch = self.sketch(values, frame=frame)

        assert torch.equal(sketch.nonfinite.nans, values.isnan().sum(0))
        assert torch.equal(sketch.nonfinite.plus_infs, (values == torch.inf).sum(0))
        assert torch.equal(sketch.nonfinite.minus_infs, (values == -torch.inf).sum(0))
        assert torch.equal(sketch.nonfinite.total, (~values.isfinite()).sum(0))
        assert sketch.num_samples == len(values)
        if not values.isfinite().all():
            with pytest.raises(NotFiniteError, match="not finite"):
                sketch.marginal()

    def test_there_is_no_law_of_no_samples(self) -> None:
        with pytest.raises(EmptyMarginalError, match="0 samples of 3 neurons"):
            self.sketch(frame=Frame.from_pilot(torch.zeros(2, 3))).marginal()

    # What goes in.

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_every_float_dtype_counts_as_float32(self, dtype: torch.dtype) -> None:
        values = columns(60, 3).to(dtype)
        frame = pilot(values)

        assert same(self.sketch(values, frame=frame), self.sketch(values.float(), frame=frame))

    @pytest.mark.parametrize(
        "layout",
        [lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, : x.shape[1]], lambda x: x.repeat(2, 1)[::2]],
    )
    def test_values_are_read_in_any_layout_and_not_kept(self, layout) -> None:
        values = layout(columns(60, 4, ALL_KINDS)).requires_grad_()
        before, frame = values.detach().clone(), pilot(values)
        sketch = self.sketch(values, frame=frame)

        assert torch.equal(values.detach().view(torch.int32), before.view(torch.int32))
        values.detach().fill_(9.0)
        assert same(sketch, self.sketch(before, frame=frame))

    @pytest.mark.parametrize(
        "values", [torch.zeros(5), torch.zeros(5, 2), torch.zeros(5, 3, 1), torch.zeros(5, 3, dtype=torch.int64)]
    )
    def test_other_tensors_are_refused(self, values: torch.Tensor) -> None:
        with pytest.raises(SketchShapeError, match=r"wanted \[rows, 3\] in a float dtype"):
            self.sketch(values, frame=Frame.from_pilot(torch.zeros(2, 3)))

    def test_sketches_of_other_frames_and_grids_are_refused(self) -> None:
        values = columns(20, 0)
        frame = pilot(values)
        sketch = self.sketch(values, frame=frame)

        for other, difference in (
            (self.sketch(values, frame=pilot(values * 4)), "the centre of neuron 0 is"),
            (self.sketch(values, frame=frame, grid=SMALL), "Grid"),
            (sketch.neurons(slice(0, 2)), "one frame has 18 neurons, the other 2"),
        ):
            with pytest.raises(OtherFrameError, match=difference):
                sketch.merge(other)
            with pytest.raises(OtherFrameError, match="cannot be merged"):
                sketch.fold(other)
            assert not sketch.same_bits(other)
