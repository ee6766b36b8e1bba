import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sketch import Frame, Grid, SketchArrays, keys
from pipeline.sketch.arrays import FAR
from pipeline.sketch.sums import NEAR
from tests.pipeline.sketch.conformance import seeds

LIMB = 1 << 32


def quanta(*columns: list[float]) -> torch.Tensor:
    """Columns of values that are as many quanta of `unit_frame`."""
    return torch.tensor(columns).t()


def unit_frame(neurons: int) -> Frame:
    """A frame in which the quantum of moments is 1 and every value is in reach of the cells."""
    zeros = torch.zeros(neurons, dtype=torch.int32)
    return Frame(torch.zeros(neurons), zeros, zeros + 100, zeros + 16)


def sums(*batches: torch.Tensor) -> SketchArrays:
    frame = unit_frame(batches[0].shape[1])
    arrays = SketchArrays.empty(frame.num_neurons, Grid())
    for batch in batches:
        keys.update(batch, frame, Grid(), arrays)
    return arrays


def second(arrays: SketchArrays) -> list[int]:
    columns = zip(arrays.second_high.tolist(), arrays.second_low.tolist(), strict=True)
    return [high * LIMB + low for high, low in columns]


@settings(max_examples=30)
@given(seed=seeds, size=st.sampled_from([10, 1 << 10, 1 << 17, NEAR - 1, NEAR, NEAR + 1, 1 << 30, FAR - (1 << 21)]))
def test_sums_are_those_of_pythons_integers(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(-size, size, (700, 3), endpoint=True).astype(np.float32))
    # One column of the largest values there are of that size, all of one sign.
    values[:, 2] = float(size)
    arrays = sums(values[:600], values[600:])
    whole = [[int(value) for value in column] for column in values.t().tolist()]

    assert arrays.first.tolist() == [sum(column) for column in whole]
    # As it is written down in arrays.py: modulo 2^96, which only the largest sizes reach.
    assert [square % 2**96 for square in second(arrays)] == [sum(a * a for a in column) % 2**96 for column in whole]
    assert all(0 <= low < LIMB for low in arrays.second_low.tolist())
    assert arrays.far.tolist() == [0, 0, 0]


def test_ties_are_rounded_to_even() -> None:
    assert sums(quanta([0.5, 1.5, 2.5, -0.5, -1.5])).first.tolist() == [0 + 2 + 2 - 0 - 2]


def test_values_that_are_too_far_are_counted_and_left_out() -> None:
    last = float(FAR - (1 << 20))
    arrays = sums(quanta([last, float(FAR), -float(FAR), 3e38], [1.0, 2.0, 3.0, 4.0]))

    assert arrays.far.tolist() == [3, 0]
    assert arrays.first.tolist() == [int(last), 10]
    assert second(arrays) == [int(last) ** 2, 30]


def test_sums_wrap_at_their_end() -> None:
    start = SketchArrays.empty(1, Grid())
    start.second_high.fill_(2**63 - 1)
    start.second_low.fill_(LIMB - 1)
    keys.update(quanta([1.0]), unit_frame(1), Grid(), start)

    assert (start.second_high.tolist(), start.second_low.tolist()) == ([-(2**63)], [0])


@pytest.mark.parametrize("rows", [511, 512, 513, 1024, 1025, 3000])
def test_float64_accumulators_are_emptied_in_time(rows: int) -> None:
    values = quanta([float(NEAR)] * rows, [float(NEAR - 1)] * rows)

    assert second(sums(values)) == [rows * NEAR**2, rows * (NEAR - 1) ** 2]
