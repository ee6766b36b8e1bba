import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from act import marginal as marginal_module
from act.errors import EmptyMarginalError, NotFiniteError, ProbabilityError, ShapeError
from act.marginal import Marginal, blocks

HEAVY = torch.from_numpy(np.random.default_rng(0).standard_t(1.5, size=(301, 7)))
SEVEN = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def test_each_neuron_is_sorted_on_its_own() -> None:
    law = Marginal.from_samples(HEAVY)

    np.testing.assert_array_equal(law.values.numpy(), np.sort(HEAVY.numpy(), axis=0))
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
    assert not Marginal.from_samples(SEVEN.clone().requires_grad_()).columns.requires_grad


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

    assert law.columns.dtype == kept
    assert torch.equal(law.values, samples.to(kept).sort(dim=0).values)


def test_the_sign_of_zero_does_not_matter() -> None:
    zeros = Marginal.from_samples(torch.tensor([[0.0], [-0.0], [0.0], [-0.0]]))

    assert not zeros.columns.signbit().any()


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
    kept = law.values.numpy() - 1e9

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
