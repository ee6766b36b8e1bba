"""Whether the frame that was fixed from a pilot fits all that came after it."""

from dataclasses import dataclass
from typing import final

import torch

from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.grid import Grid

#: A neuron misfits with more than this share of its samples in one cell, or outside all bounded cells.
LARGEST_CELL, LARGEST_OVERFLOW = 0.1, 1e-3


@final
@dataclass(frozen=True, eq=False)
class Health:
    """How well each neuron's frame fits its samples.

    Args:
        num_samples: Samples of each neuron, `[neurons]`, float64.
        largest_cell: Largest share of the samples in one cell, the atom left out, `[neurons]`, float64. It bounds the
            error of a rank. Large if the scale has shrunk since the pilot, or the centre has moved.
        overflow: Share of the samples beyond the widest cells, `[neurons]`, float64. Large if the scale has grown by
            more than widening may follow.
    """

    num_samples: torch.Tensor
    largest_cell: torch.Tensor
    overflow: torch.Tensor

    @classmethod
    def of(cls, state: SketchArrays, grid: Grid) -> "Health":
        """Returns the health of what was counted; 0 for neurons without samples."""
        counts, atom = state.counts, grid.atom
        samples = counts.sum(dim=1).clamp(min=1).double()
        largest = torch.maximum(counts[:, :atom].amax(dim=1), counts[:, atom + 1 :].amax(dim=1))
        outside = counts[:, 0].long() + counts[:, -1].long()
        return cls(samples, largest / samples, outside / samples)

    @property
    def misfit(self) -> torch.Tensor:
        """Neurons whose frame should be fixed anew and whose samples counted again, `[neurons]`, bool.

        Stored activations make that a repeatable computation; patching counts would not be. Of few samples a cell may
        hold a large share by chance, so five standard deviations of a share are allowed for.
        """
        chance = 1.5 / self.num_samples.sqrt()
        return (self.largest_cell > LARGEST_CELL + chance) | (self.overflow > LARGEST_OVERFLOW + chance / 15)
