"""The update of a sketch as one compiled loop over CPU memory: the bits of `keys.update`, faster.

It runs on one thread and lets go of Python's lock, so that a worker may give slices of neurons to its threads.

Numba compiles the loop when it is first needed, for some seconds, and keeps the machine code for later processes: in
`NUMBA_CACHE_DIR` if that is set, else in `__pycache__` beside the loop's source, else, if the installation is
read-only, in the user's cache folder. Where none of these can be written, each process compiles for itself.
"""

import functools
import inspect
from collections.abc import Callable

import torch

from pipeline.sketch import loop
from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.errors import SketchShapeError
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.tiles import FrameTuple, GridTuple, StateTuple, Tile, blocks


@functools.cache
def available() -> bool:
    """Returns whether Numba can be imported."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def update(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> None:
    """Counts values into a state on the CPU, in place, as `keys.update` does.

    Args:
        values: `[rows, neurons]`, any float dtype; fastest in float32 and where the values of a row are adjacent.
        frame: The neurons' frame.
        grid: Their cells.
        state: What was counted so far; contiguous tensors.

    Raises:
        SketchShapeError: The values, the frame and the state are not of the same neurons, or lie elsewhere.
    """
    _check(values, frame, grid, state)
    if not values.numel():
        return
    fold, cells, tile = _machine_code(), GridTuple.of(grid), Tile.empty(frame.num_neurons)
    arrays = FrameTuple.of(frame), StateTuple.of(state)
    for block in blocks(values.detach()):
        fold(block, *arrays, cells, tile)


def prepare() -> None:
    """Compiles the loop, or loads its machine code, so that the first update need not wait for it."""
    grid, value = Grid(), torch.zeros(1, 1)
    update(value, Frame.from_pilot(value), grid, SketchArrays.empty(1, grid))


@functools.cache
def _machine_code() -> Callable[..., object]:
    import numba
    from numba.extending import overload

    for function in loop.CALLED:
        overload(function, strict=False)(_constantly(_bare(function)))
    try:
        return numba.njit(nogil=True, cache=True)(_bare(loop.fold))
    except RuntimeError:  # No folder can be written.
        return numba.njit(nogil=True)(_bare(loop.fold))


def _bare(function: Callable[..., object]) -> Callable[..., object]:
    """Returns a function without what checks its types under test, which is not for compiling."""
    bare: Callable[..., object] = inspect.unwrap(function)
    return bare


def _constantly(body: Callable[..., object]) -> Callable[..., object]:
    """Returns what tells Numba the body of a function: the same for all types of its arguments."""
    return lambda *_: body


def _check(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> None:
    # The loop looks at no bounds before it writes, so this does.
    neurons = frame.num_neurons
    if values.ndim != 2 or values.shape[1] != neurons or not values.dtype.is_floating_point:
        raise SketchShapeError("the batch", values.shape, str(values.dtype), f"[rows, {neurons}] in a float dtype")
    for name, tensor in {**frame.to_tensors(), **state.tensors(), "batch": values}.items():
        shape = {"counts": (neurons, grid.num_cells), "batch": values.shape}.get(name, (neurons,))
        if tensor.shape != shape or tensor.device.type != "cpu" or not (tensor.is_contiguous() or name == "batch"):
            found = f"the {name} on {tensor.device}"
            raise SketchShapeError(found, tensor.shape, str(tensor.dtype), f"{list(shape)}, contiguous, on the CPU")
