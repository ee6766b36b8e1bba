import inspect
from typing import Any

import numpy as np
import pytest
import torch

from act.errors import ShapeError, SupportError, TokensError
from act.marginal import Marginal
from act.transport.support import bounds
from tests.laws import sketched

SAMPLES = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 40)))
#: Past the tests' own type checker, as a person reaches it.
UNCHECKED = inspect.unwrap(bounds)


def test_the_observed_support_is_the_range_of_the_source() -> None:
    low, high = bounds("observed", Marginal.from_samples(SAMPLES.float()))

    assert torch.equal(low, SAMPLES.float().amin(0))
    assert torch.equal(high, SAMPLES.float().amax(0))


@pytest.mark.parametrize("support", ["observed", (0.0, 100.0)])
@pytest.mark.parametrize("factor", [1.0, 1e-42, 1e40, -1e300])
def test_extremes_that_float32_does_not_hold_stay_inside(support: Any, factor: float) -> None:
    samples = SAMPLES * factor
    low, high = bounds(support, Marginal.from_samples(samples))

    assert {low.dtype, high.dtype} == {torch.float32}
    assert (low <= samples).all()
    assert (samples <= high).all()


def test_rounding_outward_goes_no_further_than_the_next_float32() -> None:
    low, high = bounds("observed", Marginal.from_samples(SAMPLES))

    assert (low.nextafter(torch.tensor(torch.inf)) > SAMPLES.amin(0)).all()
    assert (high.nextafter(torch.tensor(-torch.inf)) < SAMPLES.amax(0)).all()


def test_the_unbounded_support_is_everything() -> None:
    low, high = bounds("unbounded", Marginal.from_samples(SAMPLES))

    assert torch.equal(low, torch.full((40,), -torch.inf))
    assert torch.equal(high, torch.full((40,), torch.inf))


@pytest.mark.parametrize("support", [(1.0, 99.0), (2.5, 60.0), (0.0, 50.0)])
def test_percentiles_agree_with_numpy(support: Any) -> None:
    low, high = bounds(support, Marginal.from_samples(SAMPLES))

    np.testing.assert_allclose([low.numpy(), high.numpy()], np.percentile(SAMPLES, support, axis=0), rtol=1e-6)


def test_the_outermost_percentiles_are_the_observed_support() -> None:
    law = Marginal.from_samples(SAMPLES.float())

    for percentile, observed in zip(bounds((0.0, 100.0), law), bounds("observed", law), strict=True):
        assert torch.equal(percentile, observed)


@pytest.mark.parametrize("support", [(5, 95), [5.0, 95.0], (5, 95.0)])
def test_percentiles_may_be_written_as_whole_numbers_or_as_a_list(support: Any) -> None:
    law = Marginal.from_samples(SAMPLES)

    for written, plain in zip(UNCHECKED(support, law), bounds((5.0, 95.0), law), strict=True):
        assert torch.equal(written, plain)


@pytest.mark.parametrize(
    "support", [(-1, 99), (1, 101), (99, 1), (50, 50), (float("nan"), 99), (1, 2, 3), (1,), "token", "Observed", None]
)
def test_other_supports_are_refused(support: Any) -> None:
    with pytest.raises(SupportError, match="wanted 'observed', 'tokens', 'unbounded', or two percentiles"):
        UNCHECKED(support, Marginal.from_samples(SAMPLES))


def test_the_support_on_tokens_is_the_range_of_the_tokens() -> None:
    tokens = Marginal.from_samples(2 * SAMPLES.float())
    low, high = bounds("tokens", Marginal.from_samples(SAMPLES), tokens)

    assert torch.equal(low, tokens.low)
    assert torch.equal(high, tokens.high)


def test_a_support_on_tokens_needs_a_law_of_as_many_neurons() -> None:
    source = Marginal.from_samples(SAMPLES)

    with pytest.raises(TokensError, match="needs the law of single tokens and got none"):
        bounds("tokens", source)
    with pytest.raises(ShapeError, match=r"the law of tokens has the shape \[200, 39\]; wanted the source law's 40"):
        bounds("tokens", source, Marginal.from_samples(SAMPLES[:, 1:]))


@pytest.mark.parametrize("support", ["observed", (0.0, 100.0)])
def test_extremes_of_cells_are_those_of_the_samples(support: Any) -> None:
    low, high = bounds(support, sketched(SAMPLES.float().double().numpy()))

    assert torch.equal(low, SAMPLES.float().amin(0))
    assert torch.equal(high, SAMPLES.float().amax(0))


def test_percentiles_of_cells_are_off_by_the_largest_cell_in_rank() -> None:
    law, whole = sketched(SAMPLES.numpy(), per_octave=8), Marginal.from_samples(SAMPLES)

    for end, prob in zip(bounds((10.0, 90.0), law), (0.1, 0.9), strict=True):
        assert ((whole.cdf(end) - prob).abs() <= law.rank_error + 1 / 200).all()
        assert (whole.cdf(end) != prob).any()
