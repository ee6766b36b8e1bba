import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from act import marginal as marginal_module
from act.errors import CellsError, EmptyMarginalError, NotFiniteError, ProbabilityError, ShapeError
from act.marginal import Marginal, blocks, total
from tests.laws import binned, exact, moved_inside, stated

HEAVY = torch.from_numpy(np.random.default_rng(0).standard_t(1.5, size=(301, 7)))
SEVEN = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def test_each_neuron_is_sorted_on_its_own() -> None:
    law = Marginal.from_samples(HEAVY)

    np.testing.assert_array_equal(law.lows.t().numpy(), np.sort(HEAVY.numpy(), axis=0))
    assert (law.num_samples, law.num_neurons) == (301, 7)
    assert torch.equal(law.low, HEAVY.amin(0))
    assert torch.equal(law.high, HEAVY.amax(0))


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, 3:]])
def test_the_samples_are_neither_written_nor_shared(layout) -> None:
    samples = layout(SEVEN.clone())
    before = samples.clone()

    law = Marginal.from_samples(samples)
    low = law.low.clone()

    assert torch.equal(samples, before)
    samples.fill_(9.0)
    assert torch.equal(law.low, low)


def test_samples_that_carry_a_gradient_give_a_law_without_one() -> None:
    assert not Marginal.from_samples(SEVEN.clone().requires_grad_()).lows.requires_grad


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_narrow_dtypes_are_widened_and_wide_ones_kept(given_dtype: torch.dtype, kept: torch.dtype) -> None:
    samples = SEVEN.to(given_dtype)
    law = Marginal.from_samples(samples)

    assert law.lows.dtype == kept
    assert torch.equal(law.lows.t(), samples.to(kept).sort(dim=0).values)


def test_the_sign_of_zero_does_not_matter() -> None:
    zeros = Marginal.from_samples(torch.tensor([[0.0], [-0.0], [0.0], [-0.0]]))

    assert not zeros.lows.signbit().any()


@pytest.mark.parametrize("samples", [HEAVY, HEAVY.float(), HEAVY[:1], HEAVY[:2]])
def test_moments_agree_with_numpy(samples: torch.Tensor) -> None:
    law = Marginal.from_samples(samples)
    wide = samples.double().numpy()

    np.testing.assert_allclose(law.mean.numpy(), wide.mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(law.variance.numpy(), wide.var(0), rtol=1e-12)


@pytest.mark.parametrize("constant", [0.1, -1e30, 1e-40, 3.3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_has_its_mean_and_no_variance_exactly(constant: float, dtype: torch.dtype) -> None:
    samples = torch.full((1000, 1), constant, dtype=dtype)
    law = Marginal.from_samples(samples)

    assert law.mean.item() == samples[0].item()
    assert law.variance.item() == 0.0


def test_a_huge_mean_does_not_drown_a_tiny_spread() -> None:
    spread = np.random.default_rng(1).normal(size=(500, 2))
    law = Marginal.from_samples(torch.from_numpy(1e9 + spread))
    kept = law.lows.t().numpy() - 1e9

    np.testing.assert_allclose(law.variance.numpy(), kept.var(0), rtol=1e-9)
    np.testing.assert_allclose(law.mean.numpy() - 1e9, kept.mean(0), atol=2e-7)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 10, 301])
def test_quantiles_agree_with_numpy(num_samples: int) -> None:
    samples = HEAVY[:num_samples]
    probs = torch.tensor([0.0, 0.01, 0.25, 1 / 3, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)

    found = Marginal.from_samples(samples).quantile(probs)

    np.testing.assert_allclose(found.numpy(), np.quantile(samples.numpy(), probs.numpy(), axis=0), rtol=1e-12)


def test_the_outermost_quantiles_are_the_extremes() -> None:
    law = Marginal.from_samples(HEAVY.float())
    ends = law.quantile(torch.tensor([0.0, 1.0]))

    assert torch.equal(ends[0], law.low.double())
    assert torch.equal(ends[1], law.high.double())


@pytest.mark.parametrize("prob", [-0.1, 1.01, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(prob: float) -> None:
    with pytest.raises(ProbabilityError, match="from 0 to 1"):
        Marginal.from_samples(SEVEN).quantile(torch.tensor([0.5, prob]))


def test_cdf_agrees_with_scipy_also_at_the_samples() -> None:
    law = Marginal.from_samples(HEAVY)
    asked = torch.cat([HEAVY[:20], torch.linspace(-5, 5, 31, dtype=torch.float64)[:, None].expand(31, 7)])

    found = law.cdf(asked)

    for neuron in range(7):
        oracle = stats.ecdf(HEAVY[:, neuron].numpy()).cdf.evaluate(asked[:, neuron].numpy())
        np.testing.assert_allclose(found[:, neuron].numpy(), oracle, rtol=1e-12)


def test_cdf_of_one_value_a_neuron_keeps_its_shape_and_precision() -> None:
    law = Marginal.from_samples(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))

    found = law.cdf(torch.tensor([1.0, 2.0 - 1e-12], dtype=torch.float64))

    assert found.tolist() == [0.5, 0.5]


def test_expectations_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Marginal.from_samples(HEAVY)
    expected = whole.mean, whole.variance
    monkeypatch.setattr(marginal_module, "WORK_SIZE", 602)
    parts = Marginal.from_samples(HEAVY)

    assert [len(range(7)[block]) for block in blocks(7, 301)] == [2, 2, 2, 1]
    assert torch.equal(parts.mean, expected[0])
    assert torch.equal(parts.variance, expected[1])


@given(st.integers(0, 50), st.integers(1, 10), st.integers(1, 60))
def test_blocks_cover_each_neuron_once(num_neurons: int, values_each: int, work: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marginal_module, "WORK_SIZE", work)
        found = list(blocks(num_neurons, values_each))

    assert [neuron for block in found for neuron in range(num_neurons)[block]] == list(range(num_neurons))
    assert all((b.stop - b.start) * values_each <= max(work, values_each) for b in found)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), ()])
def test_other_than_two_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"wanted two axes, \[samples, neurons\]"):
        Marginal.from_samples(torch.zeros(shape))


def test_no_samples_are_refused() -> None:
    with pytest.raises(EmptyMarginalError, match="0 samples of 3 neurons"):
        Marginal.from_samples(torch.empty(0, 3))


def test_values_that_are_not_finite_are_counted_and_the_first_neuron_named() -> None:
    samples = SEVEN.clone()
    samples[4, 2] = torch.nan
    samples[5, 1] = -torch.inf

    with pytest.raises(NotFiniteError, match="2 values that are not finite, first at neuron 1"):
        Marginal.from_samples(samples)


@st.composite
def samples_and_cells(draw) -> tuple[np.ndarray, np.ndarray]:
    """A few samples of one neuron, with repeats, and edges between, at and beyond them."""
    values = st.integers(-8, 8) | st.floats(-9, 9, width=32)
    samples = np.array(draw(st.lists(values, min_size=1, max_size=12)), dtype=np.float64) + 0.0
    edges = np.unique(
        np.array(draw(st.lists(values | st.sampled_from(samples.tolist()), max_size=8)), dtype=np.float64)
    )
    return samples[:, None], edges


PLACES = st.lists(st.integers(-9, 9) | st.floats(-10, 10), min_size=1, max_size=6)


@given(samples_and_cells(), st.lists(st.floats(0, 1), min_size=1, max_size=5), st.sampled_from([0.0, 1e-7, 0.5]))
def test_quantiles_of_cells_are_within_their_bounds_and_so_are_those_of_the_samples(case, probs, error: float) -> None:
    samples, edges = case
    law = binned(samples, [edges], edge_error=error)
    samples = moved_inside(samples, law, error)
    probs = [0.0, *probs, 1.0]

    lower, upper = law.quantile_bounds(torch.tensor(probs, dtype=torch.float64))
    found, true = law.quantile(torch.tensor(probs, dtype=torch.float64)), np.quantile(samples, probs, axis=0)

    assert (lower.numpy() <= true).all()
    assert (true <= upper.numpy()).all()
    assert (lower <= found).all()
    assert (found <= upper).all()
    assert found[0] == law.low == samples.min()
    assert found[-1] == law.high == samples.max()


@given(samples_and_cells(), PLACES, st.sampled_from([0.0, 1e-7, 0.5]))
def test_ranks_of_cells_are_within_their_bounds_and_so_are_those_of_the_samples(case, places, error: float) -> None:
    samples, edges = case
    law = binned(samples, [edges], edge_error=error)
    samples = moved_inside(samples, law, error)
    x = np.concatenate([places, samples[:, 0], edges, [-np.inf, np.inf]])[:, None]
    asked = torch.from_numpy(np.sort(x, axis=0))

    lower, upper = law.cdf_bounds(asked)
    found, below = law.cdf(asked), law.cdf_below(asked)
    true = (samples[:, 0] <= asked.numpy()).mean(axis=1)[:, None]

    assert (lower.numpy() <= true).all()
    assert (true <= upper.numpy()).all()
    assert (lower <= found).all()
    assert (found <= upper).all()
    assert (below <= found).all()
    assert (found.diff(dim=0) >= 0).all()
    assert (below.diff(dim=0) >= 0).all()
    assert float(found[0]) == float(below[0]) == 0
    assert float(found[-1]) == float(below[-1]) == 1


@given(samples_and_cells(), PLACES)
def test_without_an_edge_error_a_rank_is_off_by_the_largest_cell_at_most(case, places) -> None:
    samples, edges = case
    law = binned(samples, [edges])
    asked = torch.tensor(places, dtype=torch.float64)[:, None]
    lower, upper = law.cdf_bounds(asked)
    true = torch.from_numpy(samples[:, 0] <= asked.numpy()).double().mean(dim=1, keepdim=True)

    assert ((upper - lower) <= law.rank_error + 1e-15).all()
    assert ((law.cdf(asked) - true).abs() <= law.rank_error + 1e-15).all()


def test_cells_of_no_width_are_the_law_of_the_samples() -> None:
    samples = np.random.default_rng(0).integers(0, 9, size=(50, 4)).astype(np.float64)
    values = torch.arange(9.0, dtype=torch.float64).expand(4, 9)
    counts = torch.stack([torch.bincount(column.long(), minlength=9) for column in torch.from_numpy(samples).t()])
    moments = dict.fromkeys(["mean", "variance", "mean_error", "deviation_error", "edge_error"], torch.ones(4).double())
    cells, whole = Marginal.from_cells(values, values, counts, **moments), exact(samples)
    probs = torch.linspace(0, 1, 31, dtype=torch.float64)
    x = torch.linspace(-1, 9, 41, dtype=torch.float64)[:, None].expand(41, 4)

    np.testing.assert_allclose(cells.quantile(probs), whole.quantile(probs), rtol=1e-14)
    np.testing.assert_allclose(cells.cdf(x), whole.cdf(x), rtol=1e-14)
    np.testing.assert_allclose(cells.cdf_below(x), whole.cdf_below(x), rtol=1e-14)
    square = cells.expect(lambda values, neurons: values.square())
    np.testing.assert_allclose(square, (samples**2).mean(axis=0), rtol=1e-12)


def test_share_below_leaves_out_the_samples_at_the_value() -> None:
    law = Marginal.from_samples(torch.tensor([[1.0], [1.0], [2.0], [3.0]]))
    asked = torch.tensor([[1.0], [1.5], [3.0], [4.0]])

    assert law.cdf_below(asked)[:, 0].tolist() == [0.0, 0.5, 0.75, 1.0]


def one_neuron(lows: list[float], highs: list[float], counts: list[int], **moments: float) -> Marginal:
    wanted = {"mean": 0.0, "variance": 1.0, "mean_error": 0.0, "deviation_error": 0.0, "edge_error": 0.0, **moments}
    return Marginal.from_cells(
        torch.tensor([lows], dtype=torch.float64),
        torch.tensor([highs], dtype=torch.float64),
        torch.tensor([counts]),
        **{name: torch.tensor([value], dtype=torch.float64) for name, value in wanted.items()},
    )


def test_samples_are_taken_to_lie_at_even_distances_and_two_at_the_extremes() -> None:
    law = one_neuron([0, 10], [4, 20], [5, 1])

    # Of the 5 one is at 0; of the other 4 each has a quarter of the cell, and is in its middle. The sixth is at 20.
    assert law.quantile(torch.arange(6) / 5.0)[:, 0].tolist() == pytest.approx([0, 0.5, 1.5, 2.5, 3.5, 20])
    assert law.cdf(torch.tensor([[0.0], [2.0], [4.0], [15.0], [20.0]]))[:, 0].tolist() == pytest.approx(
        [1 / 6, 3 / 6, 5 / 6, 5 / 6, 1]
    )
    assert law.expect(lambda values, neurons: values).item() == pytest.approx((0 + 4 * 2 + 20) / 6)
    assert law.rank_error.item() == pytest.approx(4 / 6)
    assert (law.num_samples, law.is_exact) == (6, False)


def test_samples_leave_nothing_open() -> None:
    law = Marginal.from_samples(HEAVY)
    probs, x = torch.tensor([0.1, 0.77]), HEAVY[:5]

    assert law.is_exact
    assert (law.rank_error == 0).all()
    for bound in law.quantile_bounds(probs):
        assert torch.equal(bound, law.quantile(probs))
    for bound in law.cdf_bounds(x):
        assert torch.equal(bound, law.cdf(x))
    for bound in law.deviation_bounds:
        assert torch.equal(bound, law.deviation)


def test_padding_changes_no_bits() -> None:
    generator = np.random.default_rng(0)
    samples = generator.standard_t(2, size=(300, 1))
    alone = binned(samples, [np.linspace(-9, 9, 41)])
    beside = binned(np.hstack([samples, samples]), [np.linspace(-9, 9, 41), np.linspace(-9, 9, 401)])
    probs, x = torch.rand(9, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)

    assert beside.lows.shape[1] > alone.lows.shape[1] + 64
    assert torch.equal(alone.quantile(probs), beside.quantile(probs)[:, :1])
    assert torch.equal(alone.cdf(x), beside.cdf(x.expand(9, 2))[:, :1])
    assert torch.equal(alone.rank_error, beside.rank_error[:1])
    assert torch.equal(*(law.expect(lambda values, _: torch.sin(values))[0] for law in (alone, beside)))
    assert torch.equal(*(law.expect(lambda values, _: torch.square(values))[0] for law in (alone, beside)))


@pytest.mark.parametrize("num_terms", [1, 63, 64, 65, 700, 1400, 5000])
def test_a_total_does_not_see_zeros_behind_it(num_terms: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(num_terms).normal(size=(20, num_terms)))

    for num_zeros in (1, 50, 64, 1000, 3000):
        assert torch.equal(total(rows), total(torch.cat([rows, torch.zeros(20, num_zeros).double()], dim=1)))
    assert torch.equal(total(rows), torch.cat([total(rows[[row]]) for row in range(20)]))
    np.testing.assert_allclose(total(rows), rows.numpy().sum(axis=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", [-1, 1])
def test_samples_that_lie_outside_their_cells_stay_within_the_bounds(direction: int) -> None:
    """Cells of nearly no width at whole numbers, and samples that are all beside them by as much as can be."""
    even = np.arange(10.0)[:, None]
    law = binned(even, [np.unique(np.r_[even, even - 1e-9])], edge_error=0.25)
    moved = even + direction * np.r_[0, np.full(8, 0.25), 0][:, None]
    probs, x = torch.arange(10).double() / 9, torch.from_numpy(moved)
    lower, upper = law.quantile_bounds(probs)
    least, most = law.cdf_bounds(x)

    assert (lower.numpy() <= moved).all()
    assert (moved <= upper.numpy()).all()
    np.testing.assert_allclose((upper - lower)[1:-1], 0.5, rtol=1e-6)
    share = torch.arange(1, 11).double()[:, None] / 10
    assert (least <= share).all()
    assert (share <= most).all()


def test_an_atom_parts_what_lies_before_it_from_what_lies_behind_it() -> None:
    """Cells on either side of an atom reach to it and not past it, however far samples may lie outside of them."""
    law = one_neuron([0, 1, 2.1, 2.2], [0, 2, 2.1, 5], [1, 5, 3, 2], edge_error=0.3)

    for ends, expected in zip(law.reach(), ([0, 0, 0.7, 2.1, 2.1, 5], [0, 0, 2.1, 2.1, 5, 5]), strict=True):
        assert ends[0].tolist() == pytest.approx(expected, rel=1e-12)
    least, most = law.cdf_bounds(torch.tensor([[2.05], [2.1], [2.2]], dtype=torch.float64))
    assert (11 * least[:, 0]).tolist() == pytest.approx([1, 9, 9])
    assert (11 * most[:, 0]).tolist() == pytest.approx([6, 10, 10])


def test_the_extremes_confine_a_deviation_of_which_nothing_is_known() -> None:
    law = one_neuron([0, 3], [1, 8], [6, 2], variance=100.0, deviation_error=1e6)

    for found, expected in zip(law.deviation_bounds, (8 / 16**0.5, 4), strict=True):
        assert found.item() == pytest.approx(expected, rel=1e-12)
    assert law.deviation.item() == pytest.approx(4, rel=1e-12)


def test_an_atom_is_no_error_of_ranks() -> None:
    assert one_neuron([0, 1, 2], [0.5, 1, 3], [3, 90, 3]).rank_error.item() == pytest.approx(2 / 96)


@given(samples_and_cells(), st.floats(-3, 3))
def test_a_deviation_is_within_its_bounds_and_the_estimate_too(case, off: float) -> None:
    samples, edges = case
    law = stated(samples, [edges], moments_off=(0.0, off))
    least, most = law.deviation_bounds

    assert least <= samples.std() * (1 + 1e-12)
    assert samples.std() <= most * (1 + 1e-12)
    assert least <= law.deviation <= most
    assert (law.deviation > 0) == (law.low < law.high)


@pytest.mark.parametrize(
    ("problem", "cells"),
    [
        ("no samples in its first cell", ([0, 1], [1, 2], [0, 3])),
        ("less than no samples", ([0, 1, 2], [1, 2, 3], [3, -1, 1])),
        ("overlap or are out of order", ([0, 0.5], [1, 2], [1, 1])),
        ("overlap or are out of order", ([1, 3], [0.5, 4], [1, 1])),
        ("overlap or are out of order", ([0, float("nan"), 5], [1, 2, 6], [1, 1, 1])),
        ("not finite", ([-float("inf"), 1], [1, 2], [1, 1])),
        ("not finite", ([0, 1], [1, float("nan")], [1, 1])),
        ("one sample and two extremes", ([0], [1], [1])),
    ],
)
def test_cells_that_are_no_law_are_refused(problem: str, cells) -> None:
    with pytest.raises(CellsError, match=f"neuron 0 has .*{problem}.*; wanted ascending cells"):
        one_neuron(*cells)


@pytest.mark.parametrize("name", ["variance", "mean_error", "deviation_error", "edge_error"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_moments_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(CellsError, match=r"neuron 0 has a (moment that is not finite|variance or an error below 0)"):
        one_neuron([0], [1], [2], **{name: value})


def test_neurons_with_other_counts_are_refused() -> None:
    lows = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    moments = {
        name: torch.zeros(2, dtype=torch.float64)
        for name in ("mean", "variance", "mean_error", "deviation_error", "edge_error")
    }

    with pytest.raises(CellsError, match="neuron 1 has another number of samples than neuron 0"):
        Marginal.from_cells(lows, lows + 1, torch.tensor([[2, 1], [2, 2]]), **moments)
    with pytest.raises(EmptyMarginalError):
        Marginal.from_cells(lows, lows + 1, torch.zeros(2, 2, dtype=torch.int64), **moments)
    with pytest.raises(ShapeError, match="a moment of cells"):
        Marginal.from_cells(
            lows, lows + 1, torch.ones(2, 2, dtype=torch.int64), **{**moments, "mean": torch.zeros(3).double()}
        )
    with pytest.raises(ShapeError, match="the tensor of cells"):
        Marginal.from_cells(lows, lows[:, :1], torch.ones(2, 2, dtype=torch.int64), **moments)
