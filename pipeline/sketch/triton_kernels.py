"""The kernels of `cuda`, in Triton's language; only `cuda` imports this, when Triton is needed.

A program holds `ROWS` rows of `NEURONS` neurons at a time, and goes through `CHUNK` rows. Values are read where they
lie, by the strides of their two axes, as the leading bits of a float32, of which `PADDING` are left out.
"""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., None]) -> Any:  # noqa: ANN401
    """Returns a function as a kernel, without what checks its types under test, which is not for compiling."""
    return triton.jit(inspect.unwrap(function))


@kernel
def extremes(
    values: tl.tensor,
    row_stride: int,
    neuron_stride: int,
    rows: int,
    neurons: int,
    low: tl.tensor,
    high: tl.tensor,
    nans: tl.tensor,
    plus_infs: tl.tensor,
    minus_infs: tl.tensor,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
    PADDING: tl.constexpr,
) -> None:
    """Finds the extremes of each neuron's finite values, as integers, and counts the other values."""
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    smallest = tl.full((NEURONS,), 0x7FFFFFFF, tl.int32)
    largest = tl.full((NEURONS,), -0x7FFFFFFF, tl.int32)
    num_nans = tl.zeros((NEURONS,), tl.int32)
    num_plus = tl.zeros((NEURONS,), tl.int32)
    num_minus = tl.zeros((NEURONS,), tl.int32)
    for start in range(0, CHUNK, ROWS):
        row = tl.program_id(1) * CHUNK + start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (neuron[None, :] < neurons)
        place = row[:, None].to(tl.int64) * row_stride + neuron[None, :].to(tl.int64) * neuron_stride
        bits = tl.load(values + place, mask=inside, other=0).to(tl.int32) << PADDING
        size = bits & 0x7FFFFFFF
        finite = inside & (size < 0x7F800000)
        # As integers, floats are in order if the bits of negative ones are turned round.
        order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        smallest = tl.minimum(smallest, tl.min(tl.where(finite, order, 0x7FFFFFFF), axis=0))
        largest = tl.maximum(largest, tl.max(tl.where(finite, order, -0x7FFFFFFF), axis=0))
        num_nans += tl.sum((inside & (size > 0x7F800000)).to(tl.int32), axis=0)
        num_plus += tl.sum((inside & (bits == 0x7F800000)).to(tl.int32), axis=0)
        num_minus += tl.sum((inside & (size == 0x7F800000) & (bits < 0)).to(tl.int32), axis=0)
    here = neuron < neurons
    tl.atomic_min(low + neuron, smallest, mask=here)
    tl.atomic_max(high + neuron, largest, mask=here)
    tl.atomic_add(nans + neuron, num_nans.to(tl.int64), mask=here & (num_nans > 0))
    tl.atomic_add(plus_infs + neuron, num_plus.to(tl.int64), mask=here & (num_plus > 0))
    tl.atomic_add(minus_infs + neuron, num_minus.to(tl.int64), mask=here & (num_minus > 0))


@kernel
def count(
    values: tl.tensor,
    row_stride: int,
    neuron_stride: int,
    rows: int,
    neurons: int,
    centre: tl.tensor,
    scale: tl.tensor,
    quanta: tl.tensor,
    counts: tl.tensor,
    first: tl.tensor,
    upper: tl.tensor,
    lower: tl.tensor,
    far: tl.tensor,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
    PADDING: tl.constexpr,
    CELLS: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    SHIFT: tl.constexpr,
    OFFSET: tl.constexpr,
    FAR: tl.constexpr,
) -> None:
    """Counts each value's cell, and sums the integers of the moments, their squares in limbs, and what is too far."""
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    here = neuron < neurons
    middle = tl.load(centre + neuron, mask=here, other=0.0)[None, :]
    scales = tl.load(scale + neuron, mask=here, other=1.0)[None, :]
    quantum = tl.load(quanta + neuron, mask=here, other=1.0)[None, :]
    atom = neuron[None, :].to(tl.int64) * CELLS + LAST
    sum_first = tl.zeros((NEURONS,), tl.int64)
    sum_upper = tl.zeros((NEURONS,), tl.int64)
    sum_lower = tl.zeros((NEURONS,), tl.int64)
    num_far = tl.zeros((NEURONS,), tl.int64)
    for start in range(0, CHUNK, ROWS):
        row = tl.program_id(1) * CHUNK + start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & here[None, :]
        place = row[:, None].to(tl.int64) * row_stride + neuron[None, :].to(tl.int64) * neuron_stride
        bits = tl.load(values + place, mask=inside, other=0).to(tl.int32) << PADDING
        finite = inside & ((bits & 0x7FFFFFFF) < 0x7F800000)
        distance = tl.where(finite, bits.to(tl.float32, bitcast=True) - middle, 0.0)
        bits = distance.to(tl.int32, bitcast=True)
        size = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)

        steps = tl.ceil(size * scales)
        cell = ((steps + tl.maximum(steps, UNIT)).to(tl.int32, bitcast=True) + OFFSET) >> SHIFT
        # What is not at the centre is not in its cell, even where the product underflows to 0.
        cell = tl.maximum(tl.minimum(cell, LAST), ((bits & 0x7FFFFFFF) != 0).to(tl.int32))
        tl.atomic_add(counts + atom + tl.where(bits < 0, -cell, cell), 1, mask=finite)

        # Adding and taking away 2^23 rounds to the nearest integer, ties to even; what is larger is one.
        whole = size * quantum
        whole = tl.where(whole < 8388608.0, (whole + 8388608.0) - 8388608.0, whole)
        near = finite & (whole < FAR)
        integer = tl.where(near, whole, 0.0).to(tl.int64)
        high, low = integer >> 22, integer & 0x3FFFFF
        cross, square = high * low, low * low
        sum_first += tl.sum(tl.where(bits < 0, -integer, integer), axis=0)
        sum_upper += tl.sum((high * high << 12) + (cross >> 9) + (square >> 32), axis=0)
        sum_lower += tl.sum(((cross & 511) << 23) + (square & 0xFFFFFFFF), axis=0)
        num_far += tl.sum((finite & (whole >= FAR)).to(tl.int64), axis=0)
    tl.atomic_add(first + neuron, sum_first, mask=here)
    tl.atomic_add(upper + neuron, sum_upper, mask=here)
    tl.atomic_add(lower + neuron, sum_lower, mask=here)
    tl.atomic_add(far + neuron, num_far, mask=here & (num_far > 0))
