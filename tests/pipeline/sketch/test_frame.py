import math

import numpy as np
import pytest
import torch
from hypothesis import given

from pipeline.sketch import Frame, HistogramSketch
from pipeline.sketch.arrays import MAX_EXPONENT, MIN_EXPONENT
from pipeline.sketch.errors import SketchShapeError
from tests.pipeline.sketch.columns import ALL_KINDS, columns, samples
from tests.pipeline.sketch.conformance import law, seeds
from tests.pipeline.sketch.reference import parts


def of(*column: float) -> Frame:
    return Frame.from_pilot(torch.tensor(column)[:, None])


@law
@given(pilot=samples(kinds=ALL_KINDS), seed=seeds)
def test_the_order_of_a_pilots_rows_does_not_matter(pilot: torch.Tensor, seed: int) -> None:
    order = torch.randperm(len(pilot), generator=torch.Generator().manual_seed(seed))

    assert Frame.from_pilot(pilot) == Frame.from_pilot(pilot[order])


@law
@given(pilot=samples(min_rows=1, kinds=ALL_KINDS))
def test_the_frame_is_the_lower_median_and_the_scale_of_the_deviations(pilot: torch.Tensor) -> None:
    frame = Frame.from_pilot(pilot)

    for neuron, column in enumerate(pilot.t().numpy()):
        finite = np.sort(column[np.isfinite(column)])
        if not len(finite):
            assert frame.centre[neuron] == 0
            continue
        centre, exponent, widest, _ = parts(frame, neuron)
        assert centre == finite[(len(finite) - 1) // 2]
        assert math.copysign(1, centre) == 1 or centre < 0
        with np.errstate(over="ignore"):
            spread = float(np.sort(np.abs(finite - np.float32(centre)))[(len(finite) - 1) // 2])
        if spread > 0:
            assert exponent == min(max(MIN_EXPONENT, math.frexp(min(spread, 1e38))[1]), MAX_EXPONENT)
            assert widest == min(exponent + 4, MAX_EXPONENT)
        else:
            assert (exponent, widest) == (MIN_EXPONENT, MAX_EXPONENT)


@pytest.mark.parametrize(
    ("spread", "exponent"),
    [
        (1.0, 1),
        (2.0, 2),
        (1.999, 1),
        (float(np.nextafter(np.float32(8), np.float32(0))), 3),
        (8.0, 4),
        (2.0**-130, -100),
    ],
)
def test_the_exponent_is_the_floor_of_the_exact_logarithm(spread: float, exponent: int) -> None:
    assert parts(of(-spread, 0.0, spread))[1] == exponent


def test_a_pilot_of_two_values_is_centred_at_one_of_them() -> None:
    assert of(1.0, 2.0, 1.0, 2.0).centre.tolist() == [1.0]


@pytest.mark.parametrize("pilot", [torch.empty(0, 3), torch.full((9, 3), torch.nan), torch.zeros(5, 3)])
def test_a_pilot_that_says_nothing_gives_a_frame_that_finds_any_scale(pilot: torch.Tensor) -> None:
    frame = Frame.from_pilot(pilot)
    scales = torch.tensor([1e-20, 1.0, 1e20])
    sketch = HistogramSketch.empty(frame)
    sketch.update(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * scales)

    assert parts(frame) == (0.0, MIN_EXPONENT, MAX_EXPONENT, 0)
    assert not sketch.health().misfit.any()


def test_moments_without_a_spread_take_the_sites_usual_scale() -> None:
    pilot = torch.randn(99, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([8.0, 8.0, 64, 1, 0, 0])
    pilot[:, 5] = 7.0
    frame = Frame.from_pilot(pilot)

    assert frame.moment_exponent[:4].tolist() == frame.exponent[:4].tolist()
    usual = sorted(frame.exponent[:4].tolist())[1]
    assert frame.moment_exponent[4:].tolist() == [usual, usual]


def test_moments_of_mostly_one_value_take_the_scale_of_the_others() -> None:
    frame = of(*[0.0] * 20, 3.0, -5.0, 100.0)

    assert parts(frame) == (0.0, MIN_EXPONENT, MAX_EXPONENT, 3)


def test_a_huge_pilot_stays_in_reach() -> None:
    values = columns(500, 0, {"huge": ALL_KINDS["huge"]})
    sketch = HistogramSketch.empty(Frame.from_pilot(values[:100]))
    sketch.update(values)

    assert not sketch.health().misfit.any()


def test_frames_are_equal_by_their_bits() -> None:
    frame = of(1.0, 2.0, 5.0)
    tensors = frame.to_tensors()

    assert Frame.from_tensors(tensors) == frame == frame[:]
    assert frame != frame[:0]
    for name, tensor in tensors.items():
        assert Frame.from_tensors({**tensors, name: tensor + 1}) != frame
    zero = Frame.from_tensors({**tensors, "centre": torch.zeros(1)})
    assert Frame.from_tensors({**tensors, "centre": -torch.zeros(1)}) != zero
    assert frame != "a frame"


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int32)])
def test_other_pilots_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(SketchShapeError, match=r"the pilot has the shape .* wanted \[rows, neurons\]"):
        Frame.from_pilot(wrong)


@pytest.mark.parametrize("name", ["centre", "exponent", "widest", "moment_exponent"])
def test_frames_of_other_shapes_or_dtypes_are_refused(name: str) -> None:
    tensors = of(1.0, 2.0, 5.0).to_tensors()

    for wrong in (tensors[name].double(), tensors[name][None]):
        with pytest.raises(SketchShapeError, match=f"the frame's {name}"):
            Frame.from_tensors({**tensors, name: wrong})
