"""Where a neuron's cells lie: a centre and a power-of-two scale, fixed once from a pilot."""

from dataclasses import dataclass, fields
from typing import final

import torch

from act.marginal import ascending
from pipeline.sketch.arrays import MAX_EXPONENT, MIN_EXPONENT
from pipeline.sketch.errors import SketchShapeError

#: How often a neuron's scale may double beyond its pilot's.
WIDENING = 4


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """The frame of each neuron of one site, the same for all units of a side.

    Args:
        centre: `[neurons]`, float32: the lower median of the pilot, a value that occurs; never −0.0.
        exponent: `[neurons]`, int32: cells start at the scale `2^exponent`.
        widest: `[neurons]`, int32: the exponent that widening stops at; what lies beyond is counted in the open ends.
        moment_exponent: `[neurons]`, int32: moments are sums of multiples of `2^(moment_exponent − 16)`.

    Raises:
        SketchShapeError: The tensors are not one row of one length, or of other dtypes.
    """

    centre: torch.Tensor
    exponent: torch.Tensor
    widest: torch.Tensor
    moment_exponent: torch.Tensor

    def __post_init__(self) -> None:
        for name, tensor in self.to_tensors().items():
            dtype = torch.float32 if name == "centre" else torch.int32
            if tensor.shape != self.centre.shape[:1] or tensor.dtype != dtype:
                wanted = f"one axis, as many neurons as the centre, in {dtype}"
                raise SketchShapeError(f"the frame's {name}", tensor.shape, str(tensor.dtype), wanted)

    @classmethod
    def from_pilot(cls, samples: torch.Tensor) -> "Frame":
        """Returns the frame that suits a pilot; the order of its rows does not matter.

        The exponent is `floor(log2 MAD) + 1`, MAD the lower median of `|x − centre|`. A neuron whose pilot has no
        such spread (dead, constant, mostly one value, empty) starts at the smallest exponent and may widen to the
        largest, so that its data find its scale. Its moments take the exponent of the lower median of what differs
        from the centre; if nothing does, the lower median of the site's moment exponents; if no neuron of the site
        has any spread, 0, the exponent of activations of order one.

        Args:
            samples: `[rows, neurons]` of all neurons of one site, any float dtype, rounded to float32. NaN and
                infinities are left out, each for its own neuron.

        Raises:
            SketchShapeError: It has not two axes, or no floating point values.
        """
        if samples.ndim != 2 or not samples.dtype.is_floating_point:
            raise SketchShapeError("the pilot", samples.shape, str(samples.dtype), "[rows, neurons] in a float dtype")
        values = samples.detach().float() + 0.0
        centre = _lower_median(values, values.isfinite()).nan_to_num(nan=0.0)
        distances = (values - centre).abs()
        spread = _lower_median(distances, values.isfinite()).nan_to_num(nan=0.0)
        scaled = spread > 0
        exponent = _exponent(spread).where(scaled, MIN_EXPONENT)
        widest = (exponent + WIDENING).clamp(max=MAX_EXPONENT).where(scaled, MAX_EXPONENT)
        apart = _lower_median(distances, values.isfinite() & (distances > 0))
        return cls(centre, exponent, widest, _moment_exponent(exponent, scaled, apart))

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Frame":
        """Returns the frame of what `to_tensors` gave."""
        return cls(*(tensors[field.name] for field in fields(cls)))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Returns the tensors by their names, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> "Frame":
        """Returns the same frame on a device."""
        return Frame(*(tensor.to(device) for tensor in self.to_tensors().values()))

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.centre.shape[0]

    def difference(self, other: "Frame") -> str:
        """Returns how another frame differs from this one in its bits, in words; nothing if it does not."""
        if self.num_neurons != other.num_neurons:
            return f"one frame has {self.num_neurons} neurons, the other {other.num_neurons}"
        for name, theirs in other.to(self.centre.device).to_tensors().items():
            mine = getattr(self, name)
            for neuron in (mine.view(torch.int32) != theirs.view(torch.int32)).nonzero()[:1, 0].tolist():
                found = f"{mine[neuron].item()} in one frame and {theirs[neuron].item()} in the other"
                return f"the {name} of neuron {neuron} is {found}"
        return ""

    def __getitem__(self, part: slice) -> "Frame":
        return Frame(*(tensor[part] for tensor in self.to_tensors().values()))

    def __eq__(self, other: object) -> bool:
        return not self.difference(other) if isinstance(other, Frame) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _lower_median(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Returns the lower median of each column's kept values, `[neurons]`; NaN where none is kept."""
    if not values.shape[0]:
        return values.new_full(values.shape[1:], torch.nan)
    ordered = ascending(values.masked_fill(~kept, torch.nan))
    middle = (kept.sum(dim=0) - 1).clamp(min=0) // 2
    return ordered.gather(1, middle[:, None])[:, 0]


def _exponent(spread: torch.Tensor) -> torch.Tensor:
    """Returns `floor(log2 spread) + 1` within the range of exponents, int32; exact, which a float log2 is not."""
    return torch.frexp(spread).exponent.where(spread.isfinite(), MAX_EXPONENT).clamp(MIN_EXPONENT, MAX_EXPONENT)


def _moment_exponent(exponent: torch.Tensor, scaled: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """Returns the moments' exponent: a neuron's own if it has spread, else the site's lower median, else 0."""
    spread = ~apart.isnan()
    own = exponent.where(scaled, _exponent(apart.nan_to_num(nan=1.0)))
    site = own[spread].sort().values
    usual = int(site[(site.numel() - 1) // 2]) if site.numel() else 0
    return own.where(spread, usual)
