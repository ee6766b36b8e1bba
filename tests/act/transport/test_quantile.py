from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act import transport
from act.errors import KnotsError, NotFiniteError, ShapeError
from act.marginal import Marginal
from act.transport import QuantileMap, TransportMap, knots, quantile
from act.transport.line import line_at, search
from tests.laws import binned, exact, graded, sketched


def loose(samples: np.ndarray) -> Marginal:
    """Cells whose moments and ends are only known so far."""
    return binned(samples, [graded(column, 32) for column in samples.T], spread_error=1e-3, edge_error=1e-3)


Laws = Callable[[np.ndarray, np.ndarray], tuple[Marginal, Marginal]]
LAWS: dict[str, Laws] = {
    "samples": lambda a, b: (exact(a), exact(b)),
    "cells": lambda a, b: (sketched(a), sketched(b)),
    "samples to cells": lambda a, b: (exact(a), sketched(b)),
    "cells to samples": lambda a, b: (sketched(a), exact(b)),
    "loose cells": lambda a, b: (loose(a), loose(b)),
}
EACH_LAW = pytest.mark.parametrize("laws", LAWS.values(), ids=LAWS)

NAMES = ("normal", "lognormal", "modes", "heavy", "relu", "offset", "outliers", "two values")


def hard(num: int, seed: int, change: float = 0.0) -> np.ndarray:
    """Samples of one neuron of each of `NAMES`, `[num, 8]`, float32 numbers; `change` makes them another law."""
    generator = np.random.default_rng(seed)
    normal, share = generator.normal(size=(7, num)), generator.random((3, num))
    columns = [
        normal[0] * (1 + change) + change,
        np.exp(normal[1] * (1 + change / 2)),
        np.where(share[0] < 0.5 + change / 5, -3, 3) + 0.3 * normal[2],
        generator.standard_t(2, num),
        np.maximum(normal[3] - 1.17 + change / 3, 0),
        1e3 + 1e-2 * normal[4] * (1 + change),
        normal[5] * np.where(share[1] < 0.05, 1e3, 1.0),
        (share[2] < 0.3 + change / 4) * 1.0,
    ]
    return np.stack(columns, axis=1).astype(np.float32).astype(np.float64)


def full(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The map of one neuron by its definition: the quantile of `b` at the largest level at which that of `a` is `x`."""
    if np.ptp(a) == 0:
        return x + b.mean() - a.mean()
    ordered, top = np.sort(a), len(a) - 1
    rank = np.searchsorted(ordered, x, side="right") - 1
    here, following = ordered[rank], ordered[np.minimum(rank + 1, top)]
    share = np.divide(x - here, following - here, out=np.zeros_like(x), where=following > here)
    return np.quantile(b, (rank + share) / top)


def places(column: np.ndarray, knots_x: torch.Tensor) -> np.ndarray:
    """Float32 numbers in the range of the samples: these, their neighbours, knots and others."""
    between = np.random.default_rng(0).uniform(column.min(), column.max(), 60)
    x = np.concatenate([column, between, knots_x.numpy()]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))])
    return np.unique(x[(x >= column.min()) & (x <= column.max())]).astype(np.float64)


def fitted(source: Marginal, target: Marginal, **options: Any) -> QuantileMap:
    found = transport.fit("quantile", source, target, **options)
    assert isinstance(found, QuantileMap)
    return found


@EACH_LAW
@pytest.mark.parametrize(("num_source", "num_target"), [(1, 3), (2, 2), (3, 2), (4, 1), (9, 40), (300, 210)])
def test_it_is_the_map_of_the_samples_up_to_its_error(laws: Laws, num_source: int, num_target: int) -> None:
    a, b = hard(num_source, 0), hard(num_target, 1, 0.5)
    found = fitted(*laws(a, b))

    for neuron, name in enumerate(NAMES):
        x = places(a[:, neuron], found.knots_x[neuron])
        one = found.of(slice(neuron, neuron + 1))
        moved = one(torch.from_numpy(x).float()[:, None])[:, 0].double().numpy()
        wanted = full(a[:, neuron], b[:, neuron], x)
        assert np.abs(moved - wanted).max() <= float(found.error[neuron]), name


@given(st.integers(2, 25), st.integers(1, 25), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1e-9]))
def test_any_samples_are_within_the_error_and_few_are_met(n: int, m: int, seed: int, step: float) -> None:
    generator = np.random.default_rng(seed)
    a, b = (np.round(generator.standard_t(3, (num, 1)) / step) * step for num in (n, m))
    a, b = (side.astype(np.float32).astype(np.float64) for side in (a, b))
    found = fitted(exact(a), exact(b))
    x = places(a[:, 0], found.knots_x[0])
    moved = found(torch.from_numpy(x).float()[:, None])[:, 0].double().numpy()

    assert np.abs(moved - full(a[:, 0], b[:, 0], x)).max() <= float(found.error[0])
    # At most 48 corners: nearly all are knots.
    assert float(found.error[0]) <= 0.05 * max(np.ptp(b), 1e-3)


@pytest.mark.parametrize("num", [2, 3, 16])
def test_few_samples_go_to_the_samples_of_the_same_rank(num: int) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, num, 5)).astype(np.float32)
    found = fitted(exact(a), exact(b))

    np.testing.assert_allclose(found(torch.from_numpy(np.sort(a, 0))), np.sort(b, 0), rtol=1e-6, atol=1e-6)
    assert (found.error < 1e-5).all()


@EACH_LAW
def test_the_moved_law_is_the_target_law(laws: Laws) -> None:
    a, b = hard(4000, 0), hard(3000, 1, 0.5)
    moved = fitted(*laws(a, b))(torch.from_numpy(a).float()).double().numpy()
    levels = np.linspace(0.01, 0.99, 99)

    # What shares a value moves together: such a law has no map to one with other shares.
    for neuron, name in enumerate(NAMES):
        if name in {"relu", "two values"}:
            continue
        found, wanted = (np.quantile(side[:, neuron], levels) for side in (moved, b))
        spread = np.quantile(b[:, neuron], 0.9) - np.quantile(b[:, neuron], 0.1)
        # Quantiles in the gap between two modes are anyone's: a share of levels may be off.
        off = np.sort(np.abs(found - wanted))[:95]
        assert np.sqrt((off**2).mean()) <= 0.02 * spread, name


@EACH_LAW
def test_a_rectified_law_is_moved_onto_another_that_is_as_often_zero(laws: Laws) -> None:
    a = np.maximum(np.random.default_rng(0).normal(size=(5000, 1)) - 1.17, 0)
    b = np.repeat(3 * np.sort(a[::2]) ** 1.5, 2, axis=0)
    moved = fitted(*laws(a, b))(torch.from_numpy(a)).numpy()

    # Where no sample is, the line goes on from the atom: what is next to it is anyone's.
    assert np.abs(moved[a == 0]).max() <= 0.02
    off = np.quantile(moved, np.linspace(0.9, 0.99, 50)) - np.quantile(b, np.linspace(0.9, 0.99, 50))
    assert np.sqrt((off**2).mean()) <= 0.05 * b.std()


def test_a_value_that_many_samples_share_goes_to_the_upper_end() -> None:
    a, b = np.repeat([0.0, 1.0, 2.0], [6, 1, 1])[:, None], np.arange(8.0)[:, None]
    found = fitted(exact(a), exact(b))

    assert found(torch.tensor([[0.0], [1.0], [2.0]]))[:, 0].tolist() == pytest.approx([5.0, 6.0, 7.0], abs=1e-6)


def test_a_jump_is_a_step_between_neighbouring_numbers() -> None:
    a, b = np.repeat([-1.0, 0.0, 1.0], [2, 5, 2])[:, None], np.arange(9.0)[:, None]
    found = fitted(exact(a), exact(b))
    before = torch.tensor([[0.0]]).nextafter(torch.tensor(-1.0))

    assert found(before).item() == pytest.approx(2.0, abs=1e-5)
    assert found(torch.zeros(1, 1)).item() == pytest.approx(6.0, abs=1e-5)


@EACH_LAW
def test_knots_ascend_between_the_extremes_of_both_laws(laws: Laws) -> None:
    a, b = hard(500, 0), hard(700, 1, 0.5)
    found = fitted(*laws(a, b))

    assert found.knots_x.dtype == found.knots_y.dtype == torch.float32
    assert found.knots_x.shape[1] <= knots.MOST_KNOTS
    step_x, step_y = found.knots_x.diff(dim=1), found.knots_y.diff(dim=1)
    assert (step_y >= 0).all()
    # Only padding, the repeated last knot, stands still.
    padding = found.knots_x[:, 1:] == found.knots_x[:, -1:]
    assert ((step_x > 0) | (padding & (step_y == 0))).all()
    for found_ends, law in ((found.knots_x, a), (found.knots_y, b)):
        assert torch.equal(found_ends[:, -1], torch.from_numpy(law.max(0)).float())
    assert torch.equal(found.knots_x[:, 0], torch.from_numpy(a.min(0)).float())


@EACH_LAW
@pytest.mark.parametrize("value", [0.0, 0.7, -1e30])
@pytest.mark.parametrize("num_source", [1, 7])
def test_a_source_without_spread_is_shifted_by_the_means(laws: Laws, value: float, num_source: int) -> None:
    a, b = np.full((num_source, 1), np.float32(value), dtype=np.float64), np.arange(5.0)[:, None]
    both = laws(a, b)
    found = fitted(*both)

    assert found(torch.from_numpy(a).float())[0].item() == pytest.approx(2.0, abs=abs(value) * 1e-6)
    assert float(found.error[0]) <= 1e-6 * (abs(value) + 5) + float(sum(law.mean_error for law in both))


def test_a_spread_that_float32_does_not_see_is_none_and_the_error_says_so() -> None:
    a, b = 1e6 + np.array([[0.0], [1e-3]]), np.array([[-3.0], [5.0]])
    found = fitted(exact(a), exact(b))

    assert float(found.error[0]) >= 4.0
    assert found(torch.tensor([[1e6]])).item() == pytest.approx(1.0, abs=0.1)


def test_a_constant_target_collapses_the_law() -> None:
    a = np.random.default_rng(0).normal(size=(30, 1))
    moved = fitted(exact(a), exact(np.full((5, 1), 0.5)))(torch.from_numpy(a).float())

    assert (moved == 0.5).all()


def test_laws_wider_than_float32_are_moved_by_the_means_and_not_vouched_for() -> None:
    a, b = np.array([[-3e38], [3e38]]), np.array([[-1.0], [1.0]])
    for one, other in ((a, b), (b, a)):
        found = fitted(exact(one), exact(other))
        assert found(torch.from_numpy(one).float()).isfinite().all()
        assert found.error.isposinf().all()


def test_scale_and_shift_are_those_of_linear() -> None:
    a, b = hard(50, 0), hard(40, 1, 0.5)
    found, line = fitted(exact(a), exact(b)), transport.fit("linear", exact(a), exact(b)).tensors()

    assert torch.equal(found.scale, line["scale"])
    assert torch.equal(found.shift, line["shift"])


def test_beyond_the_outermost_knots_the_slope_is_1_and_beyond_the_support_it_is_the_identity() -> None:
    a, b = np.array([[1.0], [2.0]]), np.array([[10.0], [30.0]])
    x = torch.tensor([[0.0], [1.0], [1.5], [2.0], [5.0]])
    everywhere, observed = (fitted(exact(a), exact(b), support=support) for support in ("unbounded", "observed"))

    assert everywhere(x)[:, 0].tolist() == pytest.approx([9.0, 10.0, 20.0, 30.0, 33.0], abs=1e-5)
    assert observed(x)[:, 0].tolist() == pytest.approx([0.0, 10.0, 20.0, 30.0, 5.0], abs=1e-5)
    assert everywhere(torch.tensor([[torch.inf], [-torch.inf]])).tolist() == [[torch.inf], [-torch.inf]]
    assert observed(torch.tensor([[torch.nan]])).isnan().all()


MAP = fitted(exact(hard(100, 0)), exact(hard(80, 1, 0.5)), support=(10.0, 90.0))
X = torch.from_numpy(hard(33, 2)).float().reshape(3, 11, 8)


@pytest.mark.parametrize("strength", [-1.0, 0.3, 0.5, 2.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_strength_blends_the_activation_with_where_it_goes(strength: float, dtype: torch.dtype, rtol: float) -> None:
    x = X.to(dtype)
    whole = MAP(x.double())
    size = float(x.abs().max() + whole.abs().max())

    assert MAP(x, strength).dtype == dtype
    torch.testing.assert_close(
        MAP(x, strength).double(), (1 - strength) * x.double() + strength * whole, rtol=rtol, atol=1e-6 * size
    )
    assert torch.equal(MAP.at(strength)(x), MAP(x, strength))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_strength_0_is_the_bits_of_the_activation_and_1_the_map_itself(dtype: torch.dtype) -> None:
    x = torch.cat([X.to(dtype), -torch.zeros(3, 1, 8, dtype=dtype)], dim=1)

    for found in (MAP(x, 0.0), MAP.at(0.0)(x)):
        assert torch.equal(found, x)
        assert torch.equal(found.signbit(), x.signbit())
    assert torch.equal(MAP(x, 1.0), MAP(x))
    assert not MAP.at(0.0).moves.any()


def test_outside_the_support_the_bits_are_those_of_the_activation() -> None:
    outside = ~((MAP.low <= X) & (MAP.high >= X))

    assert outside.any()
    assert torch.equal(MAP(X, 0.7)[outside], X[outside])


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[0, 0]])
def test_the_activation_is_not_written_and_its_shape_is_kept(layout) -> None:
    x = layout(X.clone())
    before = x.clone()
    moved = MAP(x)

    assert torch.equal(x, before)
    assert moved.shape == x.shape
    assert torch.equal(moved.reshape(-1, 8), torch.stack([MAP(row) for row in x.reshape(-1, 8)]))
    moved.fill_(9.0)
    assert torch.equal(x, before)


def test_gradients_flow_and_are_slopes() -> None:
    x = torch.tensor([[0.5], [1.25], [9.0]], requires_grad=True)
    found = fitted(exact(np.array([[0.0], [1.0], [2.0]])), exact(np.array([[0.0], [1.0], [4.0]])))
    found(x).sum().backward()

    torch.testing.assert_close(x.grad, torch.tensor([[1.0], [3.0], [1.0]]), rtol=1e-5, atol=1e-5)


def test_no_rows_are_moved_to_no_rows() -> None:
    assert MAP(X[:0]).shape == (0, 11, 8)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (8, 4)])
def test_an_activation_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="wanted 8 neurons on the last axis"):
        MAP(torch.zeros(shape))


def test_the_number_of_neurons_at_once_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, laws = MAP(X), (exact(hard(100, 0)), exact(hard(80, 1, 0.5)))
    monkeypatch.setattr(quantile, "_AT_ONCE", 1)
    assert torch.equal(MAP(X), whole)
    monkeypatch.setattr("act.marginal.WORK_SIZE", 1)
    again = fitted(*laws, support=(10.0, 90.0))
    for name, part in MAP.tensors().items():
        assert torch.equal(again.tensors()[name], part), name


def test_a_restricted_map_is_the_identity_elsewhere() -> None:
    mask = torch.arange(8) % 3 == 0
    found = MAP.restricted_to(mask)

    assert torch.equal(found.moves, mask)
    assert torch.equal(found(X)[..., mask], MAP(X)[..., mask])
    assert torch.equal(found(X)[..., ~mask], X[..., ~mask])
    assert (found.error[~mask] == 0).all()
    assert torch.equal(found.error[mask], MAP.error[mask])
    assert (found.scale[~mask] == 1).all()
    with pytest.raises(ShapeError, match="the mask"):
        MAP.restricted_to(mask[:3])


def test_a_map_comes_back_from_its_tensors() -> None:
    again = transport.map_from_tensors(MAP.tensors())

    assert isinstance(again, QuantileMap)
    assert list(MAP.tensors()) == ["scale", "shift", "low", "high", "error", "knots_x", "knots_y"]
    for name, part in MAP.tensors().items():
        assert torch.equal(again.tensors()[name], part)
    affine = transport.map_from_tensors(MAP.affine.tensors())
    assert isinstance(affine, TransportMap)
    assert MAP.to("cpu") is MAP


def test_displacement_and_transported_share_are_those_of_numpy() -> None:
    law, samples = exact(hard(100, 0)), torch.from_numpy(hard(100, 0))
    moved = (MAP(samples) - samples).abs().mean(0)

    torch.testing.assert_close(MAP.displacement(law), moved, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(MAP.transported(law), ((samples >= MAP.low) & (samples <= MAP.high)).double().mean(0))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), st.floats(-2e3, 2e3, width=32))
def test_the_search_finds_the_last_knot_that_is_not_above(values: list[float], x: float) -> None:
    ascending = torch.tensor([sorted(values)])
    found = search(ascending, torch.tensor([[x]])).item()

    assert found == max([place for place, value in enumerate(sorted(values)) if value <= x], default=0)


def test_a_line_through_knots_that_share_an_x_takes_the_last() -> None:
    x, y = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0]]), torch.tensor([[0.0, 1.0, 5.0, 6.0, 6.0]])
    asked = torch.tensor([[-1.0, 0.5, 1.0, 1.5, 2.0, 3.0]])

    assert line_at(x, y, asked, search(x, asked)).tolist() == [[-1.0, 0.5, 5.0, 5.5, 6.0, 7.0]]


def changed(**parts: torch.Tensor) -> QuantileMap:
    both = {"knots_x": MAP.knots_x, "knots_y": MAP.knots_y}
    return QuantileMap(MAP.affine, **{**both, **parts})


def test_knots_that_are_none_are_refused() -> None:
    for wrong in (MAP.knots_x[:, 0], MAP.knots_x[:4], MAP.knots_x[:, :0], MAP.knots_x[:, :5]):
        with pytest.raises(ShapeError, match="the map's knots_"):
            changed(knots_x=wrong)
    for name in ("knots_x", "knots_y"):
        for value in (torch.nan, torch.inf):
            with pytest.raises(NotFiniteError, match=f"the map's {name} holds 8 values"):
                changed(**{name: torch.full_like(MAP.knots_x, value)})
    wide = MAP.knots_y.clone()
    wide[3, 0], wide[3, -1] = -3e38, 3e38
    with pytest.raises(NotFiniteError, match="first at neuron 3"):
        changed(knots_y=wide)
    with pytest.raises(KnotsError, match="the knots of neuron 0 do not ascend"):
        changed(knots_x=MAP.knots_x.flip(1))


def test_the_order_of_samples_does_not_change_a_bit() -> None:
    a, b = hard(100, 0), hard(80, 1, 0.5)
    again = fitted(exact(a[::-1].copy()), exact(np.roll(b, 3, axis=0)), support=(10.0, 90.0))

    for name, part in MAP.tensors().items():
        assert torch.equal(again.tensors()[name], part), name
