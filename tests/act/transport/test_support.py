import inspect
from typing import Any

import numpy as np
import pytest
import torch

from act.errors import SupportError
from act.marginal import Marginal
from act.transport.support import bounds

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
    "support", [(-1, 99), (1, 101), (99, 1), (50, 50), (float("nan"), 99), (1, 2, 3), (1,), "tokens", "Observed", None]
)
def test_other_supports_are_refused(support: Any) -> None:
    with pytest.raises(SupportError, match="wanted 'observed', 'unbounded', or two percentiles"):
        UNCHECKED(support, Marginal.from_samples(SAMPLES))
