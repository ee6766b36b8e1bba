import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from act.errors import BoundError, EmptySupportError, NotFiniteError, ShapeError
from act.marginal import Marginal
from act.transport.affine import Fitted, TransportMap, line_through_means, upward
from tests.laws import binned, exact, sketched, stated

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


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=60), st.sampled_from(["all", "some", "turned"]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_and_without_gradients_the_bits_are_the_same(dtype: torch.dtype, numbers: list[int], layout: str) -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1.0, 0.5, 1e-45], dtype=dtype)
    x = torch.cat([torch.tensor(numbers).view(dtype), special.repeat(5)])
    x = x[: len(x) // 5 * 5].reshape(-1, 5)
    x = {"all": x, "some": x[::2], "turned": x.t().contiguous().t()}[layout]
    by_where = MAP(x)

    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = MAP(x)
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
        same = found.view(bits) == by_where.view(bits)
        assert (same | (found.isnan() & by_where.isnan())).all()
        outside = (x < LOW) | (x > HIGH)
        assert torch.equal(found.view(bits)[outside], x.view(bits)[outside])


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_gradients_of_every_kind_go_through_a_map() -> None:
    slope = torch.where((X >= LOW) & (X <= HIGH), SCALE, 1.0)

    assert torch.equal(torch.func.grad(lambda x: MAP(x).sum())(X), slope)
    with torch.no_grad():
        assert torch.equal(torch.func.jvp(MAP, (X,), (torch.ones_like(X),))[1], slope)
        with forward_ad.dual_level():
            assert torch.equal(forward_ad.unpack_dual(MAP(forward_ad.make_dual(X, torch.ones_like(X)))).tangent, slope)
        assert torch.equal(torch.func.vmap(MAP, in_dims=1, out_dims=1)(X), MAP(X))
        assert torch.equal(torch.jit.trace(lambda x: MAP(x), X)(X), MAP(X))
        assert torch.equal(MAP(torch.complex(X, -X).conj().imag), MAP(X))
        assert torch.equal(torch.compile(MAP, backend="eager", fullgraph=True)(X), MAP(X))


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
    wide = TransportMap(SCALE.double(), SHIFT.double(), LOW.double(), HIGH.double(), SCALE.double())

    assert {part.dtype for part in wide.tensors().values()} == {torch.float32}


@pytest.mark.parametrize("part", ["scale", "shift", "low", "high", "error"])
@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(5, 1), torch.zeros(1)])
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


@pytest.mark.parametrize("law", [exact, sketched])
def test_the_transported_share_of_any_law_is_between_what_its_ranks_allow(law) -> None:
    generator = np.random.default_rng(0)
    samples, ends = (
        generator.normal(size=(400, 5)),
        torch.from_numpy(generator.normal(size=(2, 5))).float().sort(0).values,
    )
    moved = TransportMap(torch.ones(5), torch.ones(5), ends[0], ends[1])
    whole = ((samples >= ends[0].numpy()) & (samples <= ends[1].numpy())).mean(axis=0)

    assert (
        np.abs(moved.transported(law(samples)).numpy() - whole) <= 2 * law(samples).rank_error.numpy() + 1e-12
    ).all()


def test_an_end_of_the_support_that_is_a_sample_is_transported() -> None:
    samples = Marginal.from_samples(torch.tensor([[0.0], [1.0], [1.0], [2.0]]))
    one = torch.ones(1)

    assert TransportMap(one, one, one, one).transported(samples).item() == 0.5
    assert TransportMap(one, one, one, 2 * one).transported(samples).item() == 0.75


def test_displacement_over_cells_is_near_that_over_samples() -> None:
    samples = np.random.default_rng(0).normal(size=(2000, 5))

    np.testing.assert_allclose(MAP.displacement(sketched(samples)), MAP.displacement(exact(samples)), rtol=0.03)


def test_an_error_is_kept_rounded_up_and_is_0_if_left_out() -> None:
    error = torch.tensor([0.1, 0.2, 1e-60, torch.inf, 1e39], dtype=torch.float64)
    kept = TransportMap(SCALE, SHIFT, LOW, HIGH, error).error

    assert (kept >= error).all()
    assert (kept.nextafter(-torch.ones(())) < error)[:3].all()
    assert torch.equal(MAP.error, torch.zeros(5))
    assert torch.equal(TransportMap(SCALE, SHIFT, LOW, HIGH, torch.tensor(0.5)).error, torch.full((5,), 0.5))


@pytest.mark.parametrize("value", [-1e-9, torch.nan, -torch.inf])
def test_an_error_that_is_no_bound_is_refused(value: float) -> None:
    with pytest.raises(BoundError, match=r"the error of neuron 2 is bounded by .*; wanted 0 or more"):
        TransportMap(SCALE, SHIFT, LOW, HIGH, torch.tensor([0.0, torch.inf, value, 0.0, 0.0]))


def test_a_blended_map_has_the_blended_error() -> None:
    whole = TransportMap(SCALE, SHIFT, LOW, HIGH, torch.tensor([1.0, 0.0, 3.0, torch.inf, 2.0]))

    assert torch.equal(whole.at(-2.0).error, 2 * whole.error)
    assert torch.equal(whole.at(0.0).error, torch.zeros(5))


def test_a_restricted_map_is_the_identity_elsewhere() -> None:
    mask = torch.tensor([True, False, True, False, True])
    whole = TransportMap(SCALE, SHIFT, LOW, HIGH, torch.ones(5))
    kept = whole.restricted_to(mask)

    assert torch.equal(kept(X), torch.where(mask, whole(X), X))
    assert torch.equal(kept.error, mask.float())
    assert torch.equal(kept.moves, mask & whole.moves)
    assert torch.equal(kept.low, LOW)
    assert torch.equal(kept.high, HIGH)
    with pytest.raises(ShapeError, match="the mask of neurons"):
        whole.restricted_to(mask[:1])


def test_only_scale_1_and_shift_0_move_nothing() -> None:
    moved = TransportMap(
        torch.tensor([1.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]), -torch.ones(4), torch.ones(4)
    )

    assert moved.moves.tolist() == [False, True, True, True]


def test_tensors_make_the_same_map_again() -> None:
    whole = TransportMap(SCALE, SHIFT, LOW, HIGH, SCALE)
    again = TransportMap(**whole.tensors())

    assert list(whole.tensors()) == ["scale", "shift", "low", "high", "error"]
    assert all(torch.equal(part, again.tensors()[name]) for name, part in whole.tensors().items())


def test_the_map_of_some_neurons_is_that_of_these() -> None:
    whole = TransportMap(SCALE, SHIFT, LOW, HIGH, SCALE)

    assert torch.equal(whole.of(slice(1, 4))(X[..., 1:4]), whole(X)[..., 1:4])
    assert torch.equal(whole.of(slice(1, 4)).error, SCALE[1:4])


FLOATS = st.floats(-(2.0**66), 2.0**66, width=32)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=9))
def test_rounding_up_goes_no_further_than_needed(values: list[float]) -> None:
    wide = torch.tensor(values, dtype=torch.float64)
    rounded = upward(wide)

    assert (rounded >= wide).all()
    assert (rounded.nextafter(torch.tensor(-torch.inf)).double() < wide).all()


@given(
    st.floats(-1e9, 1e9),
    st.floats(-1e9, 1e9),
    st.lists(FLOATS, min_size=1, max_size=20),
)
def test_what_float32_does_to_a_line_is_within_the_error(scale: float, shift: float, samples: list[float]) -> None:
    source = Marginal.from_samples(torch.tensor(samples)[:, None])
    exactly = torch.tensor([[scale], [shift], [0.0], [0.0]], dtype=torch.float64)
    rounded = Fitted(*exactly).on(source.low.float(), source.high.float(), source)
    x = torch.tensor(samples)[:, None]

    true = scale * x.double() + shift
    assert ((rounded(x).double() - true).abs() <= rounded.error).all()
    assert (rounded.error <= 2.0**-20 * (abs(scale) * x.abs().max() + abs(shift)) * 2 + 1e-40).all()


def test_the_error_of_a_line_is_that_at_the_farthest_place_of_support_and_range() -> None:
    source = Marginal.from_samples(torch.tensor([[-1.0, -1.0, -1.0], [3.0, 3.0, 3.0]]))
    one, none = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    low, high = torch.tensor([-torch.inf, 0.5, -9.0]), torch.tensor([torch.inf, 2.5, 1.5])
    error = Fitted(none, none, 0.5 * one, 0.25 * one).on(low, high, source).error

    # The mean is 1. The whole range reaches 2 from it, the second support 1.5, the third 2.
    np.testing.assert_allclose(error, [1.25, 1.0, 1.25], rtol=1e-5)


def test_parameters_beyond_float32_become_its_largest_and_the_error_says_by_how_much() -> None:
    source = Marginal.from_samples(torch.tensor([[-1e-3], [1e-3]], dtype=torch.float64))
    values = torch.tensor([[0.0], [5e38], [0.0], [0.0]], dtype=torch.float64)
    largest = torch.finfo(torch.float32).max
    moved = Fitted(*values).on(torch.tensor([-1.0]), torch.tensor([1.0]), source)

    assert moved.shift.item() == largest
    assert moved.error.item() == pytest.approx(5e38 - largest, rel=1e-3)


def test_where_float32_does_not_hold_the_result_there_is_no_bound() -> None:
    source = Marginal.from_samples(torch.tensor([[1e38], [3e38]]))
    values = torch.tensor([[1.0], [2e38], [0.0], [0.0]], dtype=torch.float64)
    moved = Fitted(*values).on(source.low, source.high, source)

    assert moved(source.high).isinf().all()
    assert moved.error.isinf().all()


def test_a_line_through_the_means_is_off_by_what_its_slope_and_the_means_are_off() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(5, size=(50, 2)), generator.normal(size=(50, 2))
    source, target = (stated(x, [np.zeros(1)] * 2, (off, 0.0)) for x, off in ((a, 0.25), (b, 0.5)))
    scale, least, most = torch.tensor([[2.0, 2.0], [1.9, 0.5], [4.0, 2.1]], dtype=torch.float64)
    line = line_through_means(source, target, scale, least, most)

    np.testing.assert_allclose(line.shift, target.mean - 2 * source.mean, rtol=1e-12)
    np.testing.assert_allclose(line.slope_error, [2.0, 1.5], rtol=1e-12)
    np.testing.assert_allclose(line.offset_error, [0.5 + 4 * 0.25, 0.5 + 2.1 * 0.25], rtol=1e-6)


def test_a_slope_that_may_be_none_that_float32_holds_may_be_1() -> None:
    samples = np.array([[-1.0], [0.0], [1.0]])
    source, target = binned(samples, [np.array([0.5])]), binned(1e38 * samples, [np.array([0.5])])

    def errors(scale: float, least: float, most: float) -> float:
        slopes = torch.tensor([[scale], [least], [most]], dtype=torch.float64)
        return line_through_means(source, target, *slopes).slope_error.item()

    assert errors(1e38, 1e38, 2e38) == pytest.approx(1e38)
    # Some of what the slope may be is too large, and then it is 1; where the estimate is, the largest may be it.
    assert errors(3e38, 2e38, 4e38) == pytest.approx(3e38)
    assert errors(4e38, 3e38, 5e38) == pytest.approx(torch.finfo(torch.float32).max)
    assert errors(5e38, 4e38, 6e38) == 0
