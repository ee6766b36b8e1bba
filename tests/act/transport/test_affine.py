import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.errors import EmptySupportError, NotFiniteError, ShapeError
from act.marginal import Marginal
from act.transport.affine import TransportMap

SCALE = torch.tensor([0.0, 0.5, 1.0, 3.0, 1e-9])
SHIFT = torch.tensor([0.25, -1.0, 0.0, 2.0, 7.0])
LOW = torch.tensor([-1.0, -torch.inf, -0.5, 0.0, 1.0])
HIGH = torch.tensor([1.0, torch.inf, 0.5, torch.inf, 1.0])
MAP = TransportMap(SCALE, SHIFT, LOW, HIGH)
X = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0))


def oracle(x: torch.Tensor, strength: float = 1.0) -> np.ndarray:
    a = x.double().numpy()
    scale, shift, low, high = (part.double().numpy() for part in (SCALE, SHIFT, LOW, HIGH))
    moved = np.where((a >= low) & (a <= high), scale * a + shift, a)
    return (1 - strength) * a + strength * moved


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 2**-8)])
def test_the_formula_in_each_dtype(strength: float, dtype: torch.dtype, rtol: float) -> None:
    x = X.to(dtype)
    moved = MAP(x, strength)

    assert moved.dtype == dtype
    np.testing.assert_allclose(moved.double().numpy(), oracle(x, strength), rtol=rtol, atol=rtol)


def test_narrow_dtypes_are_computed_in_float32_and_rounded_once() -> None:
    x = X.to(torch.bfloat16)

    assert torch.equal(MAP(x, 0.3), MAP(x.float(), 0.3).to(torch.bfloat16))


def test_both_ends_of_the_support_are_inside_and_their_neighbours_outside() -> None:
    end = torch.tensor([0.1])
    bounded = TransportMap(torch.tensor([2.0]), torch.tensor([5.0]), -end, end)
    beyond = end.nextafter(torch.tensor(torch.inf))

    for sign in (-1, 1):
        assert torch.equal(bounded(sign * end), sign * end * 2 + 5)
        assert torch.equal(bounded(sign * beyond), sign * beyond)


def test_outside_the_support_the_bits_are_those_of_the_activation() -> None:
    bounded = TransportMap(torch.tensor([2.0]), torch.tensor([5.0]), torch.tensor([0.1]), torch.tensor([0.2]))

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.tensor([[-0.0], [0.3], [-torch.inf], [1e-40], [65000.0]], dtype=dtype)
        assert torch.equal(bounded(x, 0.7), x)
        assert bounded(x, 0.7).signbit().equal(x.signbit())
        assert bounded(torch.tensor([torch.nan], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_strength_0_is_the_identity_and_1_the_map_itself(dtype: torch.dtype) -> None:
    x = X.to(dtype)

    assert torch.equal(MAP(x, 0.0), x)
    assert torch.equal(MAP(x, 1.0), MAP(x))
    for part in ("scale", "shift", "low", "high"):
        assert torch.equal(getattr(MAP.at(1.0), part), getattr(MAP, part))


@given(st.floats(-4, 4))
def test_a_blended_map_is_the_map_at_that_strength(strength: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(MAP.at(strength)(X.to(dtype)), MAP(X.to(dtype), strength))


def test_a_scale_that_is_tiny_beside_1_survives() -> None:
    assert MAP.at(1.0).scale[4] == torch.tensor(1e-9)


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, ::2]])
def test_the_activation_is_not_written_and_its_shape_is_kept(layout) -> None:
    x = layout(X.clone())
    before = x.clone()
    moved = MAP(x)

    assert torch.equal(x, before)
    assert moved.shape == x.shape
    moved.fill_(9.0)
    assert torch.equal(x, before)


def test_an_activation_may_be_one_vector() -> None:
    assert torch.equal(MAP(X[0, 0]), MAP(X)[0, 0])


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (5, 4)])
def test_an_activation_of_another_width_is_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="wanted 5 neurons on the last axis"):
        MAP(torch.zeros(shape))


def test_a_map_on_its_device_already_is_itself() -> None:
    assert MAP.to("cpu") is MAP


def test_parts_are_kept_as_float32() -> None:
    wide = TransportMap(SCALE.double(), SHIFT.double(), LOW.double(), HIGH.double())

    assert {wide.scale.dtype, wide.shift.dtype, wide.low.dtype, wide.high.dtype} == {torch.float32}


@pytest.mark.parametrize("part", ["scale", "shift", "low", "high"])
@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(5, 1), torch.zeros(())])
def test_parts_of_other_shapes_are_refused(part: str, wrong: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"the map's \w+ has the shape"):
        replaced(part, wrong)


@pytest.mark.parametrize("part", ["scale", "shift"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scales_and_shifts_that_are_not_finite_are_refused(part: str, value: float) -> None:
    with pytest.raises(NotFiniteError, match=f"the map's {part} holds 1 value that is not finite, first at neuron 3"):
        replaced(part, torch.tensor([1.0, 1.0, 1.0, value, 1.0]))


def test_scales_beyond_float32_are_refused() -> None:
    with pytest.raises(NotFiniteError, match="the map's scale"):
        replaced("scale", torch.tensor([1e39, 1, 1, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize(("part", "value"), [("low", 1.5), ("low", torch.nan), ("high", torch.nan), ("high", -2.0)])
def test_a_support_that_holds_nothing_is_refused(part: str, value: float) -> None:
    with pytest.raises(EmptySupportError, match="the support of neuron 0"):
        replaced(part, torch.cat([torch.tensor([value]), getattr(MAP, part)[1:]]))


def replaced(part: str, value: torch.Tensor) -> TransportMap:
    parts = {"scale": SCALE, "shift": SHIFT, "low": LOW, "high": HIGH}
    return TransportMap(**{**parts, part: value})


def test_displacement_and_transported_share_agree_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act.marginal.WORK_SIZE", 70)
    samples = X.reshape(33, 5)
    law = Marginal.from_samples(samples)
    moved = np.abs(oracle(samples) - samples.double().numpy()).mean(0)
    inside = ((samples >= LOW) & (samples <= HIGH)).double().mean(0)

    np.testing.assert_allclose(MAP.displacement(law), moved, rtol=1e-6)
    np.testing.assert_allclose(MAP.transported(law), inside, rtol=1e-12)
