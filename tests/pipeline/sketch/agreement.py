"""Whether a kernel leaves the bits of plain torch, and inputs that are hard for it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pipeline.sketch import Frame, Grid, SketchArrays, keys

Kernel = Callable[[torch.Tensor, Frame, Grid, SketchArrays], None]


def different(
    kernel: Kernel, batches: Sequence[torch.Tensor], frame: Frame, grid: Grid, device: str = "cpu"
) -> set[str]:
    """The tensors of the state that differ from plain torch's in some bit, after one batch or a later one."""
    mine, theirs = (SketchArrays.empty(frame.num_neurons, grid, device) for _ in range(2))
    found = set()
    for batch in batches:
        kernel(batch.to(device), frame.to(device), grid, mine)
        keys.update(batch.to(device), frame.to(device), grid, theirs)
        found |= {name for name, tensor in mine.tensors().items() if not _same_bits(tensor, getattr(theirs, name))}
    return found


def _same_bits(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if mine.dtype == torch.float32:
        mine, theirs = mine.view(torch.int32), theirs.view(torch.int32)
    return torch.equal(mine, theirs)


def frame_of(centre: float, exponent: int, widening: int = 4, moments: int | None = None) -> Frame:
    """The frame of one neuron that may widen a few times; its moments have its own exponent unless told."""
    widest, moments = min(exponent + widening, 114), exponent if moments is None else moments
    return Frame(torch.tensor([centre]), *(torch.tensor([e], dtype=torch.int32) for e in (exponent, widest, moments)))


def around_edges(grid: Grid, exponent: int, centre: float) -> torch.Tensor:
    """Every edge of the grid on both sides of a centre, and the three floats below and above it, `[values, 1]`."""
    with np.errstate(over="ignore", under="ignore"):
        edges = (grid.edges().numpy() * 2.0**exponent).astype(np.float32)
        values = [np.concatenate([np.float32(centre) + edges, np.float32(centre) - edges])]
        for end in (np.float32(-np.inf), np.float32(np.inf)):
            near = values[0]
            for _ in range(3):
                near = np.nextafter(near, end)
                values.append(near)
    return torch.from_numpy(np.concatenate(values))[:, None]


def any_bits(num_values: int, seed: int, neurons: int = 1) -> torch.Tensor:
    """Random bit patterns, NaN, infinities and subnormal numbers among them, `[values, neurons]`."""
    rng = np.random.default_rng(abs(seed))
    return torch.from_numpy(rng.integers(0, 1 << 32, (num_values, neurons), dtype=np.uint32).view(np.float32))
