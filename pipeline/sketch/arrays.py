"""The state of a histogram sketch as plain tensors, which every kernel updates in the same way."""

from dataclasses import dataclass, fields
from typing import final

import torch

from pipeline.sketch.grid import Grid

#: Exponents of scales lie in this range: 2^(precision − e) stays a normal float32, and at the upper end every
#: finite float32 has a bounded cell of a grid of 15 octaves.
MIN_EXPONENT, MAX_EXPONENT = -100, 114

#: Binary digits of the moments below a neuron's moment exponent: their quantum is `2^(moment_exponent − 16)`.
MOMENT_BITS = 16

#: A value of this many quanta or more is too far for the moments and is counted in `far`.
FAR = 1 << 44

#: Most samples of a neuron: the counts are int32 and wrap silently.
MAX_SAMPLES = (1 << 31) - 1


@final
@dataclass(frozen=True)
class SketchArrays:
    """What a sketch has counted, a row or an entry for each neuron; kernels write to the tensors in place.

    A kernel `update(values, frame, grid, state)` must leave these bits, whatever its tiles and its order:

    - Values are read as float32 (bfloat16 and float16 are upcast). NaN, +inf and −inf are counted in `nans`,
      `plus_infs`, `minus_infs` and take no further part.
    - `low`, `high`: exact extremes of the finite values; +inf and −inf while there are none; never −0.0.
    - `exponent`: the largest of what it was, `frame.exponent` and `min(need, frame.widest)`; `need` is the smallest
      e with `max(|fl(min − c)|, |fl(max − c)|) <= 2^(e + grid.reach)` over the finite values of the *whole* update,
      and `widest` if that difference overflows. Where the exponent grows, the counts are coarsened first.
    - `counts`: cell `atom + sign(d) k` with `d = fl(x − c)` in float32, `k = 0` for `d = 0` and otherwise
      `m = max(1, ceil(|d| 2^(p − e)))`, `t = m + max(m, 2^p)`, `k = min(H + 1, (bits(t) − bits(2^p) + 2^(23−p) − 1)
      >> (23 − p))`. The 1 matters where `|d| 2^(p − e)` underflows to 0: a coarsened cell 1 must stay cell 1.
    - `first`, `second_high`, `second_low`: with `a = rint(d 2^(16 − frame.moment_exponent))` in float32, ties to
      even, over the values with `|a| < 2^44`: the sum of a, and the sum of a² as `second_high 2^32 + second_low`,
      `0 <= second_low < 2^32`; sums wrap modulo 2^64 and 2^96. The other finite values are counted in `far`.

    Args:
        exponent: `[neurons]`, int32: cells are in units of `2^exponent`.
        counts: `[neurons, num_cells]`, int32, contiguous.
        low: `[neurons]`, float32.
        high: `[neurons]`, float32.
        first: `[neurons]`, int64.
        second_high: `[neurons]`, int64.
        second_low: `[neurons]`, int64.
        nans: `[neurons]`, int64.
        plus_infs: `[neurons]`, int64.
        minus_infs: `[neurons]`, int64.
        far: `[neurons]`, int64.
    """

    exponent: torch.Tensor
    counts: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    first: torch.Tensor
    second_high: torch.Tensor
    second_low: torch.Tensor
    nans: torch.Tensor
    plus_infs: torch.Tensor
    minus_infs: torch.Tensor
    far: torch.Tensor

    @classmethod
    def empty(cls, num_neurons: int, grid: Grid, device: torch.device | str = "cpu") -> "SketchArrays":
        """Returns the state that has counted nothing, at the smallest exponent there is."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            exponent=zeros(num_neurons, dtype=torch.int32) + MIN_EXPONENT,
            counts=zeros(num_neurons, grid.num_cells, dtype=torch.int32),
            low=zeros(num_neurons, dtype=torch.float32) + torch.inf,
            high=zeros(num_neurons, dtype=torch.float32) - torch.inf,
            first=zeros(num_neurons),
            second_high=zeros(num_neurons),
            second_low=zeros(num_neurons),
            nans=zeros(num_neurons),
            plus_infs=zeros(num_neurons),
            minus_infs=zeros(num_neurons),
            far=zeros(num_neurons),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the tensors by their names, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def neurons(self, part: slice) -> "SketchArrays":
        """Returns the state of some neurons: views, so that updating them updates this state."""
        return SketchArrays(**{name: tensor[part] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> "SketchArrays":
        """Returns the same state on a device: the same tensors if they are there already."""
        return SketchArrays(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def clone(self) -> "SketchArrays":
        """Returns a copy that shares no memory with this state."""
        return SketchArrays(**{name: tensor.clone() for name, tensor in self.tensors().items()})
