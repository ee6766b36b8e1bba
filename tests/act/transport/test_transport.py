"""The methods together, as `act.transport.fit` gives them."""

from typing import Any

import numpy as np
import pytest
import torch

from act import transport
from act.errors import ShapeError, SupportError, TokensError, UnknownMethodError
from act.marginal import Marginal
from act.transport.affine import upward
from act.transport.interface import AbstractMap

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.normal(2, 1, size=(128, 16)), GENERATOR.normal(-1, 3, size=(90, 16))
SOURCE, TARGET = Marginal.from_samples(torch.from_numpy(A)), Marginal.from_samples(torch.from_numpy(B))
EACH = pytest.mark.parametrize("method", transport.METHODS)

#: Maps between laws, known where the source law is.
BETWEEN_LAWS = ("mean", "gaussian", "linear", "quantile")


def fitted(method: str, **options: Any) -> AbstractMap:
    """The map of the laws, of as many samples for the method that needs pairs."""
    target = Marginal.from_samples(torch.from_numpy(A - 3)) if method == "actadd" else TARGET
    samples = torch.from_numpy(A), torch.from_numpy(B)
    return transport.fit(method, SOURCE, target, samples=samples, **options)


@pytest.mark.parametrize("method", ["mean", "gaussian", "linear", "caa", "iti-mean"])
def test_the_mean_is_carried_to_the_mean(method: str) -> None:
    moved = fitted(method)(torch.from_numpy(A))

    np.testing.assert_allclose(moved.mean(0), B.mean(0), rtol=1e-5, atol=1e-6)


@EACH
def test_a_fitted_map_is_float32_and_increasing(method: str) -> None:
    found = fitted(method)
    values = torch.linspace(-9, 9, 200)[:, None].expand(200, 16)

    assert {part.dtype for part in found.tensors().values()} == {torch.float32}
    moved = fitted(method, support="unbounded")(values)
    assert (moved.diff(dim=0) >= 0).all()


@EACH
def test_each_sample_of_the_source_is_transported_under_the_default_support(method: str) -> None:
    found, named = fitted(method), fitted(method, support=transport.default_support(method))

    assert (found.transported(SOURCE) == 1).all()
    assert (transport.default_support(method) == "observed") == (method in BETWEEN_LAWS)
    assert torch.equal(found.low, named.low)
    assert torch.equal(found.high, named.high)


@EACH
@pytest.mark.parametrize(("support", "share"), [("unbounded", 1.0), ("tokens", 1.0), ((10.0, 90.0), 0.8)])
def test_the_support_does_not_change_the_map(method: str, support: Any, share: float) -> None:
    tokens = Marginal.from_samples(torch.from_numpy(np.concatenate([A, 9 * A])))
    found, observed = fitted(method, support=support, tokens=tokens), fitted(method, support="observed")

    for name in found.tensors().keys() - {"low", "high", "error"}:
        assert torch.equal(found.tensors()[name], observed.tensors()[name]), name
    assert float(found.transported(SOURCE).mean()) == pytest.approx(share, abs=0.02)
    if support == "tokens":
        assert torch.equal(found.high, upward(tokens.high))


def test_linear_carries_the_spread_and_mean_does_not() -> None:
    linear, mean = (fitted(method)(torch.from_numpy(A)) for method in ("linear", "mean"))

    np.testing.assert_allclose(linear.std(0), B.std(0), rtol=0.1)
    np.testing.assert_allclose(mean.std(0), torch.from_numpy(A).std(0), rtol=1e-6)


def test_an_unknown_method_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(UnknownMethodError, match=r"did you mean 'linear'\? there are: det-zero, actadd, .*, quantile"):
        transport.fit("liner", SOURCE, TARGET)


def test_laws_of_different_widths_are_refused_with_both() -> None:
    narrow = Marginal.from_samples(torch.from_numpy(B[:, :5]))

    with pytest.raises(ShapeError, match=r"\[90, 5\]; wanted the source law's 16 neurons"):
        transport.fit("linear", SOURCE, narrow)


def test_an_unknown_support_is_refused() -> None:
    with pytest.raises(SupportError):
        transport.fit("linear", SOURCE, TARGET, support=(99.0, 1.0))


def test_the_support_of_tokens_wants_their_law() -> None:
    with pytest.raises(TokensError):
        transport.fit("linear", SOURCE, TARGET, support="tokens")


def test_the_default_choice_is_a_choice_that_fit_takes() -> None:
    chosen = transport.Transport()
    found = transport.fit(chosen.method, SOURCE, TARGET, support=chosen.support, threshold=chosen.threshold)

    assert chosen.select is None
    assert torch.equal(found.tensors()["scale"], fitted("linear").tensors()["scale"])
    assert (chosen.where, transport.Transport("caa").where) == ("observed", "unbounded")
    assert transport.Transport("caa", (1.0, 99.0)).where == (1.0, 99.0)


@EACH
def test_each_map_comes_back_from_its_tensors(method: str) -> None:
    found = fitted(method)
    again = transport.map_from_tensors(found.tensors())

    assert type(again) is type(found)
    assert again.tensors().keys() == found.tensors().keys()
    for name, part in found.tensors().items():
        assert torch.equal(again.tensors()[name], part)


@EACH
def test_a_restricted_map_keeps_its_kind_and_moves_nothing_else(method: str) -> None:
    found, mask = fitted(method), torch.arange(16) % 2 == 0
    restricted = found.restricted_to(mask)

    assert type(restricted) is type(found)
    assert torch.equal(restricted.moves, found.moves & mask)
    moved, whole, x = restricted(torch.from_numpy(A)), found(torch.from_numpy(A)), torch.from_numpy(A)
    assert torch.equal(moved[:, mask], whole[:, mask])
    assert torch.equal(moved[:, ~mask], x[:, ~mask])


@EACH
@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_strength_blends_the_activation_with_where_it_goes(method: str, strength: float) -> None:
    found, x = fitted(method), torch.from_numpy(A)
    wanted = (1 - strength) * x + strength * found(x)

    torch.testing.assert_close(found(x, strength), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.at(strength)(x), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found(x, 0.0), x)
