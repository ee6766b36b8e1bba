"""The cells that activations are counted in."""

from dataclasses import dataclass
from typing import final

import torch

from pipeline.sketch.errors import GridError
from pipeline.sketch.powers import wide_power_of_two


@final
@dataclass(frozen=True)
class Grid:
    """Cells around 0, laid out as a float with gradual underflow, in units of a neuron's scale `2^e`.

    On each side there are `2^precision` equal cells on [0, 1], then `2^precision` equal cells in each octave
    `(2^o, 2^(o+1)]`, o = 0 … octaves − 2. Cell k of the right side is `(E[k−1], E[k]]`, with
    `E[k] = k / 2^precision` up to 1; the left side is its mirror image. In between lies the atom, the cell of what
    is exactly 0, and outside an open cell on each side counts what lies beyond `E[half] = 2^(octaves−1)`.

    The edges at scale `2^(e+1)` are some of the edges at `2^e`, so `coarsen` turns the counts of the one into
    exactly those of the other.

    Args:
        precision: Binary logarithm of the number of cells in an octave, from 1 to 10.
        octaves: Number of octaves on each side, [0, 1] being the first.

    Raises:
        GridError: The grid is too fine or too wide for the float32 arithmetic of the key.
    """

    precision: int = 5
    octaves: int = 15

    def __post_init__(self) -> None:
        # The key adds integers up to 2 (2^(octaves-1+precision) + 1) in float32, exact below 2^24.
        if not (1 <= self.precision <= 10 and self.octaves >= 2 and self.octaves + self.precision <= 23):
            raise GridError(self.precision, self.octaves)

    @property
    def half(self) -> int:
        """Number of bounded cells on one side, H."""
        return self.octaves << self.precision

    @property
    def atom(self) -> int:
        """Place of the cell that holds the centre alone, H + 1."""
        return self.half + 1

    @property
    def num_cells(self) -> int:
        """Number of cells, 2 H + 3: both sides, the atom and the two open ends."""
        return 2 * self.half + 3

    @property
    def reach(self) -> int:
        """Binary logarithm of the last edge: the bounded cells end at `2^(e + reach)` on each side."""
        return self.octaves - 1

    def edges(self) -> torch.Tensor:
        """Returns the edges of one side, `E[0] … E[H]`, `[half + 1]`, float64, exact."""
        steps = torch.arange(1 << self.precision, dtype=torch.float64) / (1 << self.precision)
        octaves = wide_power_of_two(torch.arange(self.octaves - 1))
        outer = (octaves[:, None] * (1 + steps)).reshape(-1)
        return torch.cat([steps, outer, 2 * octaves[-1:]])

    def cell_ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the lower and the upper end of every cell, `[num_cells]` each, float64, infinite at the open ends."""
        edges, end = self.edges(), torch.tensor([torch.inf], dtype=torch.float64)
        lows = torch.cat([-end, -edges[1:].flip(0), edges[:1], edges])
        return lows, -lows.flip(0)

    def coarsen(self, counts: torch.Tensor) -> torch.Tensor:
        """Returns the counts at twice the scale, `[neurons, num_cells]`, a new tensor.

        Cell k goes to `(k + 1) >> 1` up to `2^(precision+1)` and to `k − 2^precision` above. The open ends keep
        what they hold: where they hold something the scale has reached its cap, and nothing coarsens any more.
        """
        coarse = torch.zeros_like(counts)
        step, atom, last = 1 << self.precision, self.atom, self.num_cells - 1
        for kept in (0, atom, last):
            coarse[:, kept] = counts[:, kept]
        # Slices, from left to right: a gather of the same pairs was seen to take ten times as long.
        left, right = atom - 2 * step, atom + 1 + 2 * step
        coarse[:, 1 + step : left + step] = counts[:, 1:left]
        for fine, pairs in (
            (counts[:, left:atom], coarse[:, left + step : atom]),
            (counts[:, atom + 1 : right], coarse[:, atom + 1 : right - step]),
        ):
            torch.add(fine[:, ::2], fine[:, 1::2], out=pairs)
        coarse[:, right - step : last - step] = counts[:, right:last]
        return coarse
