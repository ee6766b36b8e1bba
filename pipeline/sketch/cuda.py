"""The update of a sketch as two Triton kernels: the bits of `keys.update`, for states on a GPU.

The first finds each neuron's extremes, in the order of their bits, and counts what is not finite. Torch widens the
scales. The second counts keys and sums moments. What programs share is added with integer atomics alone, so that no
order of theirs changes a bit. Where a float is multiplied it is by a power of two: exact, also if a compiler
contracts it with the addition that follows.

Triton is imported when the kernels are first needed. `TRITON_INTERPRET=1`, set before that, runs them on a CPU,
slowly: for tests.
"""

import contextlib
import functools
import subprocess

import torch

from pipeline.sketch import keys
from pipeline.sketch.arrays import FAR, MOMENT_BITS, SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.powers import power_of_two
from pipeline.sketch.sums import add_sums
from pipeline.sketch.widening import farthest, wanted_exponent, widen

#: Rows of one program, and the rows and neurons that it holds at once.
CHUNK, ROWS, NEURONS = 256, 16, 64

#: Larger than the bits of any float32, as an int32.
NOTHING = 0x7FFFFFFF


@functools.cache
def available(device: torch.device) -> bool:
    """Returns whether the kernels run on a device and leave the bits of `keys.update` there; asked once, by trying."""
    if device.type != "cuda":
        return False
    try:
        from triton.errors import TritonError
    except ImportError:
        return False
    try:
        return _agrees(device)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError):  # No compiler, or a GPU too old or new.
        return False


def update(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> None:
    """Counts values into a state on a GPU, in place, as `keys.update` does.

    Args:
        values: `[rows, neurons]`, any float dtype.
        frame: The neurons' frame.
        grid: Their cells.
        state: What was counted so far; contiguous tensors.
    """
    device = state.counts.device
    if not values.numel():
        return
    values, frame = values.detach().to(device), frame.to(device)
    # Bfloat16 has the leading half of a float32's bits, and is read as it is.
    values = values.view(torch.int16) if values.dtype == torch.bfloat16 else values.float().view(torch.int32)
    low, high = _extremes_of(values, state)
    distance = farthest(low, high, frame.centre)
    widen(state, frame.centre, wanted_exponent(distance, frame, grid), grid)
    torch.minimum(state.low, low, out=state.low)
    torch.maximum(state.high, high, out=state.high)
    add_sums(state, _count_all(values, frame, grid, state))


def _extremes_of(values: torch.Tensor, state: SketchArrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts what is not finite, and returns the extremes of the rest, `[neurons]`, infinite where there is none."""
    order = torch.full((2, values.shape[1]), NOTHING, dtype=torch.int32, device=values.device)
    order[1].neg_()
    apart = (state.nans, state.plus_infs, state.minus_infs)
    _launch("extremes", values, (*order, *apart), {})
    bits = order ^ (order >> 31 & NOTHING)
    none = torch.tensor([[torch.inf], [-torch.inf]], device=values.device)
    low, high = bits.view(torch.float32).where(order[0] <= order[1], none) + 0.0
    return low, high


def _count_all(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> torch.Tensor:
    """Counts the keys and what is too far, and returns the sums of a and the limbs of a², `[3, neurons]`, int64."""
    sums = torch.zeros((3, values.shape[1]), dtype=torch.int64, device=values.device)
    scale, quanta = power_of_two(grid.precision - state.exponent), power_of_two(MOMENT_BITS - frame.moment_exponent)
    _launch("count", values, (frame.centre, scale, quanta, state.counts, *sums, state.far), rule(grid))
    return sums


def rule(grid: Grid) -> dict[str, float]:
    """Returns the constants that keys and moments are computed with, by their names in the kernel."""
    shift, unit = 23 - grid.precision, float(1 << grid.precision)
    offset = (1 << shift) - 1 - int(torch.tensor(unit).view(torch.int32))
    key = {"CELLS": grid.num_cells, "LAST": grid.atom, "UNIT": unit, "SHIFT": shift, "OFFSET": offset}
    return key | {"FAR": float(FAR)}


def _launch(name: str, values: torch.Tensor, tensors: tuple[torch.Tensor, ...], constants: dict[str, float]) -> None:
    rows, neurons = values.shape
    programs = (-(-neurons // NEURONS), -(-rows // CHUNK))
    sizes = {"CHUNK": CHUNK, "ROWS": ROWS, "NEURONS": NEURONS, "PADDING": 32 - 8 * values.element_size()}
    from pipeline.sketch import triton_kernels

    kernel = getattr(triton_kernels, name)[programs]
    # Triton launches on the current device, which is not always the tensors' one.
    with torch.cuda.device(values.device) if values.is_cuda else contextlib.nullcontext():
        kernel(values, *values.stride(), rows, neurons, *tensors, **sizes, **constants, enable_fp_fusion=False)


def _agrees(device: torch.device) -> bool:
    """Returns whether the kernels and torch count the same of a small and hard batch."""
    generator, grid = torch.Generator().manual_seed(0), Grid()
    bits = torch.randint(-(1 << 31), 1 << 31, (300, 70), dtype=torch.int64, generator=generator)
    values = torch.randn(300, 70, generator=generator)
    values[:, ::2] = bits.to(torch.int32).view(torch.float32)[:, ::2]
    frame = Frame.from_pilot(values[:50]).to(device)
    states = [SketchArrays.empty(70, grid, device) for _ in range(2)]
    for kernel, state in zip((update, keys.update), states, strict=True):
        kernel(values.to(device), frame, grid, state)
    pairs = zip(states[0].tensors().values(), states[1].tensors().values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)
