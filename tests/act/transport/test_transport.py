"""The methods together, as `act.transport.fit` gives them."""

from typing import Any

import numpy as np
import pytest
import torch

from act import transport
from act.errors import ShapeError, SupportError, UnknownMethodError
from act.marginal import Marginal

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.normal(2, 1, size=(128, 16)), GENERATOR.normal(-1, 3, size=(90, 16))
SOURCE, TARGET = Marginal.from_samples(torch.from_numpy(A)), Marginal.from_samples(torch.from_numpy(B))
EACH = pytest.mark.parametrize("method", transport.METHODS)


@EACH
def test_each_method_carries_the_mean_to_the_mean(method: str) -> None:
    fitted = transport.fit(method, SOURCE, TARGET)
    moved = fitted(torch.from_numpy(A))

    np.testing.assert_allclose(moved.mean(0), B.mean(0), rtol=1e-5, atol=1e-6)


@EACH
def test_a_fitted_map_is_float32_and_increasing(method: str) -> None:
    fitted = transport.fit(method, SOURCE, TARGET)

    assert {getattr(fitted, part).dtype for part in ("scale", "shift", "low", "high")} == {torch.float32}
    assert (fitted.scale >= 0).all()


@EACH
def test_each_sample_of_the_source_is_transported_under_the_observed_support(method: str) -> None:
    fitted = transport.fit(method, SOURCE, TARGET)

    assert (fitted.transported(SOURCE) == 1).all()
    assert torch.equal(transport.fit(method, SOURCE, TARGET, support="observed").low, fitted.low)


@EACH
@pytest.mark.parametrize(("support", "share"), [("unbounded", 1.0), ((10.0, 90.0), 0.8)])
def test_the_support_does_not_change_the_map(method: str, support: Any, share: float) -> None:
    fitted, observed = (transport.fit(method, SOURCE, TARGET, support=s) for s in (support, "observed"))

    assert torch.equal(fitted.scale, observed.scale)
    assert torch.equal(fitted.shift, observed.shift)
    assert float(fitted.transported(SOURCE).mean()) == pytest.approx(share, abs=0.02)


def test_linear_carries_the_spread_and_mean_does_not() -> None:
    linear, mean = (transport.fit(method, SOURCE, TARGET)(torch.from_numpy(A)) for method in ("linear", "mean"))

    np.testing.assert_allclose(linear.std(0), B.std(0), rtol=0.1)
    np.testing.assert_allclose(mean.std(0), torch.from_numpy(A).std(0), rtol=1e-6)


@EACH
def test_the_order_of_samples_does_not_change_a_bit(method: str) -> None:
    shuffled = Marginal.from_samples(torch.from_numpy(GENERATOR.permutation(A)))
    one, other = transport.fit(method, SOURCE, TARGET), transport.fit(method, shuffled, TARGET)

    for part in ("scale", "shift", "low", "high"):
        assert torch.equal(getattr(one, part), getattr(other, part))


def test_an_unknown_method_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(UnknownMethodError, match=r"did you mean 'linear'\? there are: mean, linear"):
        transport.fit("liner", SOURCE, TARGET)


def test_laws_of_different_widths_are_refused_with_both() -> None:
    narrow = Marginal.from_samples(torch.from_numpy(B[:, :5]))

    with pytest.raises(ShapeError, match=r"\[90, 5\]; wanted the source law's 16 neurons"):
        transport.fit("linear", SOURCE, narrow)


def test_an_unknown_support_is_refused() -> None:
    with pytest.raises(SupportError):
        transport.fit("linear", SOURCE, TARGET, support=(99.0, 1.0))


def test_the_default_choice_is_a_choice_that_fit_takes() -> None:
    chosen = transport.Transport()
    fitted = transport.fit(chosen.method, SOURCE, TARGET, support=chosen.support)

    assert torch.equal(fitted.scale, transport.fit("linear", SOURCE, TARGET).scale)
