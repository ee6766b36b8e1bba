"""Sums of a neuron's values and of their squares as integers, the same in every order.

With the quantum `q = 2^(moment_exponent − 16)` a value is `c + a q` nearly, `a = rint((x − c) / q)` an integer. The
sums of a and a² are kept as integers, the second in two limbs `high 2^32 + low`.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from pipeline.sketch.arrays import FAR, MOMENT_BITS, SketchArrays
from pipeline.sketch.frame import Frame
from pipeline.sketch.powers import power_of_two

LIMB = 32
LIMB_MASK = (1 << LIMB) - 1

#: Up to here a tile of 512 squares has an exact sum in float64: 2^(2·22) · 512 = 2^53.
NEAR = 1 << 22

#: Values that are squared as integers at once.
FAR_VALUES = 1 << 18


@final
@dataclass
class MomentSums:
    """Sums over the tiles of one block of neurons.

    As long as they are below 2^53 they are kept in float64, where sums of integers are exact in any order; a matrix
    product adds a tile to them. Neurons with values that are too far for that are summed as integers in `finish`.

    Args:
        quanta: `1 / q`, `[neurons]`.
        near: Neurons whose values are near enough, `[neurons]`.
        first: Sum of a since the last flush, `[neurons]`, float64.
        second: Sum of a² since the last flush, `[neurons]`, float64.
        total: Sums of a and the limbs of a² before that, `[3, neurons]`, int64.
        room: How many rows may be added before a flush.
        rows: How many were.
    """

    quanta: torch.Tensor
    near: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    total: torch.Tensor
    room: int
    rows: int = 0

    @classmethod
    def start(cls, distance: torch.Tensor, frame: Frame) -> "MomentSums":
        """Returns empty sums for values that lie at most at a distance, `[neurons]`, from the centre."""
        quanta = power_of_two(MOMENT_BITS - frame.moment_exponent)
        steps = (distance * quanta).double()
        near = steps <= NEAR
        largest = max(1, math.ceil(float(steps.where(near, 0.0).max())))
        zeros = torch.zeros((2, frame.num_neurons), dtype=torch.float64, device=steps.device)
        total = torch.zeros((3, frame.num_neurons), dtype=torch.int64, device=steps.device)
        return cls(quanta, near, zeros[0], zeros[1], total, (1 << 53) // largest**2)

    def add(self, distance: torch.Tensor, scaled: torch.Tensor, wide: torch.Tensor, ones: torch.Tensor) -> None:
        """Adds a tile of at most 512 rows.

        Args:
            distance: `x − c`, `[rows, neurons]`.
            scaled: A buffer of the same kind, overwritten.
            wide: A buffer in float64, overwritten.
            ones: `[rows]`, float64.
        """
        if self.rows + distance.shape[0] > self.room:
            self._flush()
        self.rows += distance.shape[0]
        wide.copy_(torch.mul(distance, self.quanta, out=scaled).round_())
        self.first.addmv_(wide.t(), ones)
        self.second.addmv_(wide.mul_(wide).t(), ones)

    def finish(self, block: torch.Tensor, frame: Frame, state: SketchArrays) -> None:
        """Adds the sums of a block, `[rows, neurons]`, all of it finite, to a state, in place."""
        self._flush()
        total = self.total.where(self.near, 0)
        if not bool(self.near.all()):
            places = (~self.near).nonzero()[:, 0]
            total[:, places], far = _integer_sums(block[:, places], frame.centre[places], self.quanta[places])
            state.far[places] += far
        add_sums(state, total)

    def _flush(self) -> None:
        square = self.second.long()
        self.total += torch.stack([self.first.long(), square >> LIMB, square & LIMB_MASK])
        self.first.zero_()
        self.second.zero_()
        self.rows = 0


def add_sums(state: SketchArrays, sums: torch.Tensor) -> None:
    """Adds sums of a and the limbs of a², `[3, neurons]`, to a state, in place, and carries between the limbs."""
    state.first.add_(sums[0])
    low = sums[2] + state.second_low
    state.second_high.add_(sums[1]).add_(low >> LIMB)
    state.second_low.copy_(low & LIMB_MASK)


def _integer_sums(block: torch.Tensor, centre: torch.Tensor, quanta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of a and the limbs of a², `[3, neurons]`, and how many values are too far, `[neurons]`."""
    sums = torch.zeros((3, block.shape[1]), dtype=torch.int64, device=block.device)
    far = torch.zeros_like(sums[0])
    for values in torch.split(block, max(1, FAR_VALUES // block.shape[1])):
        steps = ((values - centre) * quanta).round_()
        outside = steps.abs() >= FAR
        whole = steps.masked_fill_(outside, 0.0).long()
        sums[0] += whole.sum(dim=0)
        high, low = _square(whole)
        sums[1] += high.sum(dim=0)
        sums[2] += low.sum(dim=0)
        far += outside.sum(dim=0)
    # Each value's low limb is below 2^34, so that their sum has room; what is carried makes it one limb again.
    sums[1] += sums[2] >> LIMB
    sums[2] &= LIMB_MASK
    return sums, far


def _square(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the squares of integers below 2^44 in size as two limbs, the low one below 2^34, int64.

    With `a = h 2^22 + l` it is `h² 2^44 + 2 h l 2^22 + l²`, of which each term is cut at 2^32.
    """
    high, low = whole >> 22, whole & ((1 << 22) - 1)
    cross, square = high * low, low * low
    upper = (high * high << 12) + (cross >> 9) + (square >> LIMB)
    return upper, ((cross & 511) << 23) + (square & LIMB_MASK)
