"""The choice among the kernels that count; they leave the same bits."""

import torch

from pipeline.sketch import compiled, cuda, keys
from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid


def count(values: torch.Tensor, frame: Frame, grid: Grid, state: SketchArrays) -> None:
    """Counts values, `[rows, neurons]`, into a state, in place, on the state's device.

    A compiled loop where Numba is installed and the state is on a CPU, Triton's where it is on a GPU, else plain
    torch. The frame is on the state's device.
    """
    if not values.numel():
        return
    device = state.counts.device
    values = values.to(device)
    if device.type == "cpu" and compiled.available():
        compiled.update(values, frame, grid, state)
    elif cuda.available(device):
        cuda.update(values, frame, grid, state)
    else:
        keys.update(values, frame, grid, state)
