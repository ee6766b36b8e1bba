"""Mean and variance of what was counted, with proven errors."""

from dataclasses import dataclass, fields
from typing import final

import torch

from pipeline.sketch.arrays import MOMENT_BITS, SketchArrays
from pipeline.sketch.cells import ROUNDOFF, ROUNDOFF64, Cells
from pipeline.sketch.frame import Frame
from pipeline.sketch.powers import wide_power_of_two

#: Neurons whose moments are taken from their cells at once.
BLOCK = 64


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of each neuron's samples, `[neurons]`, float64.

    Args:
        mean: Mean.
        variance: Population variance.
        mean_error: How far the mean of the samples is from `mean` at most.
        deviation_error: How far their standard deviation is from `sqrt(variance)` at most.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    mean_error: torch.Tensor
    deviation_error: torch.Tensor

    @classmethod
    def of(cls, frame: Frame, state: SketchArrays, cells: Cells, num_samples: int) -> "Moments":
        """Returns the moments of a state in which every neuron has as many samples.

        They come from the integer sums, and for the neurons whose sums do not hold all values from the cells.
        """
        moments = _of_sums(frame, state, num_samples)
        for places in torch.split((~_summed(frame, state, num_samples)).nonzero()[:, 0], BLOCK):
            for name, part in _of_cells(cells, places, num_samples).items():
                getattr(moments, name)[places] = part
        return moments._confined(state.low.double(), state.high.double())

    def items(self) -> list[tuple[str, torch.Tensor]]:
        """Returns the tensors by their names."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def _confined(self, low: torch.Tensor, high: torch.Tensor) -> "Moments":
        # A mean lies between the extremes, and a deviation is at most half of their distance (Popoviciu, 1935):
        # moving an estimate there brings it nearer to the truth. A constant neuron's moments become exact.
        half = (high - low) / 2
        return Moments(
            self.mean.clamp(low, high),
            self.variance.minimum(half.square()),
            self.mean_error.minimum(high - low),
            self.deviation_error.minimum(half),
        )


def _summed(frame: Frame, state: SketchArrays, num_samples: int) -> torch.Tensor:
    """Returns which neurons' sums hold all values and cannot have wrapped, `[neurons]`.

    With `|a| <= A` the sum of squares is at most n A². Below 2^95 both limbs fit, and so does the sum of a:
    `n A = sqrt(n) sqrt(n A²) < 2^15.5 2^47.5`.
    """
    centre = frame.centre.double()
    distance = torch.maximum((state.high.double() - centre).abs(), (state.low.double() - centre).abs())
    largest = distance * (1 + 2 * ROUNDOFF) * wide_power_of_two(MOMENT_BITS - frame.moment_exponent) + 1
    return (state.far == 0) & (num_samples * largest.square() < 2.0**95 * (1 - ROUNDOFF))


def _of_sums(frame: Frame, state: SketchArrays, num_samples: int) -> Moments:
    """Returns moments from the sums: those of `c + a q`, in Python's integers.

    A value lies within `q/2 + 2^−24 |x − c|` of `c + a q`, the key's rounding and that of a. By Minkowski's
    inequality the moments are then off by no more than `q/2 + 2^−24` times the root mean square of `x − c`.
    """
    quantum = wide_power_of_two(frame.moment_exponent - MOMENT_BITS)
    columns = zip(state.first.tolist(), state.second_high.tolist(), state.second_low.tolist(), strict=True)
    found = [_mean_and_variance(first, (high << 32) + low, num_samples) for first, high, low in columns]
    mean, variance, square = quantum.new_tensor(found).t().contiguous()
    shift = mean * quantum
    error = quantum / 2 + ROUNDOFF * (1 + 4 * ROUNDOFF) * (square.sqrt() + 0.5) * quantum
    return Moments(
        frame.centre.double() + shift,
        variance * quantum.square(),
        error + 4 * ROUNDOFF64 * (shift.abs() + frame.centre.double().abs()),
        error + 4 * ROUNDOFF64 * variance.sqrt() * quantum,
    )


def _mean_and_variance(first: int, second: int, num_samples: int) -> tuple[float, float, float]:
    """Returns mean, variance and mean square of integers from their sums, each rounded once."""
    variance = (num_samples * second - first * first) / (num_samples * num_samples)
    # Sums that wrapped give anything; they are not used.
    return first / num_samples, max(variance, 0.0), max(second / num_samples, 0.0)


def _of_cells(cells: Cells, places: torch.Tensor, num_samples: int) -> Moments:
    """Returns moments of some neurons as if each sample lay in the middle of its cell.

    A sample lies within half the width of its cell of that, and within the edge error besides; but one lies at either
    extreme exactly.
    """
    counts, low, high = cells.counts[places], cells.lows[places], cells.highs[places]
    last = (counts > 0).sum(dim=1, keepdim=True) - 1
    counts[:, 0] -= 1
    counts.scatter_add_(1, last, -torch.ones_like(last))
    low, high = (torch.cat([low[:, :1], ends, high[:, -1:]], dim=1) for ends in (low, high))
    weight = torch.nn.functional.pad(counts, (1, 1), value=1).double() / num_samples
    middle, half = low / 2 + high / 2, (high - low) / 2
    mean = (weight * middle).sum(dim=1)
    variance = (weight * (middle - mean[:, None]).square()).sum(dim=1).clamp(min=0)
    rounding = ROUNDOFF64 * (weight.shape[1] + 8) * torch.maximum(low[:, 0].abs(), high[:, -1].abs())
    error = cells.edge_error[places] + rounding
    return Moments(
        mean,
        variance,
        (weight * half).sum(dim=1).clamp(min=0) * (1 + ROUNDOFF) + error,
        (weight * half.square()).sum(dim=1).clamp(min=0).sqrt() * (1 + ROUNDOFF) + error,
    )
