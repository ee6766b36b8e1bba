"""The affine map: the one form that every method's maps take, but the full monotone map's."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch.autograd import forward_ad

from act.errors import BoundError, EmptySupportError, NotFiniteError, ShapeError
from act.marginal import Marginal
from act.transport.interface import AbstractMap

PARTS = ("scale", "shift", "low", "high", "error")

#: Largest float32, and what float32 arithmetic is off by: relative, and where numbers are too small for that.
LARGEST = float(torch.finfo(torch.float32).max)
ROUNDING, SMALLEST = 2.0**-24, 2.0**-149


@final
@dataclass(frozen=True, eq=False)
class TransportMap(AbstractMap):
    """``T(a) = scale * a + shift`` inside ``[low, high]``, ends included, and the identity outside.

    Args:
        scale: Slope of each neuron's map, `[neurons]`, float32, finite.
        shift: Offset of each neuron's map, `[neurons]`, float32, finite.
        low: Lower end of each neuron's support, `[neurons]`, float32, maybe ``-inf``.
        high: Upper end of each neuron's support, `[neurons]`, float32, maybe ``inf``.
        error: Bound on the error of each neuron's map, `[neurons]` or one for all, float32, maybe ``inf``.

    Raises:
        ShapeError: They are not vectors of one length.
        NotFiniteError: A scale or shift is not finite.
        EmptySupportError: Some neuron's support is empty or NaN.
        BoundError: An error is negative or NaN.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    error: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        if self.error.ndim == 0:
            object.__setattr__(self, "error", self.error.to(self.scale.device).expand(self.scale.shape))
        for name in PARTS:
            part = getattr(self, name)
            if part.ndim != 1 or part.shape != self.scale.shape:
                wanted = f"one axis, [neurons], as long as the scale's {self.scale.numel()}"
                raise ShapeError(f"the map's {name}", part.shape, wanted)
            object.__setattr__(self, name, upward(part) if name == "error" else part.float())
        _check_finite("the map's scale", self.scale)
        _check_finite("the map's shift", self.shift)
        for neuron in (~(self.low <= self.high)).nonzero()[:, 0].tolist():
            raise EmptySupportError(float(self.low[neuron]), float(self.high[neuron]), neuron)
        for neuron in (~(self.error >= 0)).nonzero()[:, 0].tolist():
            raise BoundError(float(self.error[neuron]), neuron)

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return len(self.scale)

    @property
    def moves(self) -> torch.Tensor:
        """Whether the map is anything but the identity, `[neurons]`, bool."""
        return (self.scale != 1) | (self.shift != 0)

    def __call__(self, x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """Returns ``(1 - strength) * x + strength * T(x)``, in the shape and dtype of `x`, which is not written to.

        Inside the support that is one multiplication and one addition, each correctly rounded, in float32 (float64
        for a float64 `x`) and rounded once to the dtype of `x`; outside it is the bits of `x`.

        Args:
            x: Activation, neurons on the last axis, `[..., neurons]`, floating point.
            strength: 0 is the identity, 1 the whole transport; any finite number is possible.

        Raises:
            ShapeError: The last axis has another length.
        """
        if x.ndim == 0 or x.shape[-1] != self.num_neurons:
            raise ShapeError("the activation", x.shape, f"{self.num_neurons} neurons on the last axis")
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale, shift = _blend(self.scale.to(dtype), self.shift.to(dtype), strength)
        wide = x.to(dtype)
        return _within(self.low, self.high, (wide * scale).add_(shift), wide).to(x.dtype)

    def at(self, strength: float) -> "TransportMap":
        """Returns the map already blended: ``T.at(s)(x)`` is ``T(x, s)``, for a float64 `x` up to float32.

        Its error is ``|s|`` times that of the map, plus what float32 adds to a blend of two.
        """
        if strength == 1:
            return self
        error = self.error * abs(strength) if strength else torch.zeros_like(self.error)
        return TransportMap(*_blend(self.scale, self.shift, strength), self.low, self.high, error)

    def to(self, device: torch.device | str) -> "TransportMap":
        """Returns the same map on a device; itself if it is there already."""
        if self.scale.device == torch.device(device):
            return self
        return TransportMap(*(getattr(self, name).to(device) for name in PARTS))

    def of(self, neurons: slice) -> "TransportMap":
        """Returns the map of some of the neurons."""
        return TransportMap(*(getattr(self, name)[neurons] for name in PARTS))

    def restricted_to(self, mask: torch.Tensor) -> "TransportMap":
        """Returns the map that has scale 1, shift 0 and error 0 on every neuron outside a mask.

        Args:
            mask: Which neurons keep their map, `[neurons]`, bool.

        Raises:
            ShapeError: The mask has another length.
        """
        if mask.shape != self.scale.shape:
            raise ShapeError("the mask of neurons", mask.shape, f"one axis with {self.num_neurons} neurons")
        scale, shift, error = self.scale.where(mask, 1.0), self.shift.where(mask, 0.0), self.error.where(mask, 0.0)
        return TransportMap(scale, shift, self.low, self.high, error)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns scale, shift, low, high and error by their names, each `[neurons]`, float32."""
        return {name: getattr(self, name) for name in PARTS}


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """What a method makes of two laws: a line for each neuron and how far it may be off, all `[neurons]`, float64.

    With `T` the line of the samples themselves and `m` the source's `mean`,

        ``|scale * x + shift - T(x)| <= slope_error * |x - m| + offset_error``.

    Args:
        scale: Slope of the line.
        shift: Offset of the line.
        slope_error: Bound that grows with the distance from the mean, 0 where the slope is certain.
        offset_error: Bound that does not.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    slope_error: torch.Tensor
    offset_error: torch.Tensor

    def on(self, low: torch.Tensor, high: torch.Tensor, source: Marginal) -> TransportMap:
        """Returns the map on a support, rounded to float32, with the bound on its error.

        A scale or shift beyond float32 becomes the largest float32. The error is that at the place that is farthest
        from the mean, of those that lie in the support and in the range of the source's samples. To it is added what
        the rounding of scale and shift does there, and ``8 * 2^-24`` of the largest numbers that occur: a product and
        a sum in float32 are off by less than ``3 * 2^-24`` of them, and a map of the samples themselves, rounded to
        float32, by less than ``4 * 2^-24``. It is ``inf`` where float32 does not hold what the map gives.

        Args:
            low: Lower end of the support, `[neurons]`, float32, maybe ``-inf``.
            high: Upper end of the support, `[neurons]`, float32, maybe ``inf``.
            source: The law that the line was fitted from.
        """
        scale, shift = (part.clamp(-LARGEST, LARGEST).float() for part in (self.scale, self.shift))
        ends = torch.stack([low.double().maximum(source.low), high.double().minimum(source.high)])
        reach, far = ends.abs().amax(dim=0), (ends - source.mean).abs().amax(dim=0)
        unsure = self.slope_error * far + self.offset_error
        parameters = (self.scale - scale).abs() * reach + (self.shift - shift).abs()
        largest = (
            (scale.double().abs() + self.slope_error) * (reach + source.mean.abs()) + shift.double().abs() + unsure
        )
        error = unsure + parameters + 8 * (ROUNDING * largest + SMALLEST)
        products = scale.double() * ends
        beyond = torch.cat([products, products + shift.double()]).abs().amax(dim=0) > LARGEST
        return TransportMap(scale, shift, low, high, error.masked_fill(beyond, torch.inf))


def line_through_means(
    source: Marginal, target: Marginal, scale: torch.Tensor, least: torch.Tensor, most: torch.Tensor
) -> Fitted:
    """Returns the line from mean to mean, ``T(x) = w (x - m_a) + m_b``, with a slope that is known up to bounds.

    A neuron gets scale 1 if its source has no spread, or if the line is none that float32 can hold and compute: if
    `scale` or ``scale * max |a| + |shift|`` is beyond its largest number.

    With estimates marked by a hat, ``T̂(x) - T(x) = (ŵ - w) (x - m̂_a) + w (m_a - m̂_a) + (m̂_b - m_b)``. Where cells
    leave it open on which side of that rule the samples are, `w` may be 1 too.

    Args:
        source: Law of `a`.
        target: Law of `b`, of as many neurons.
        scale: Slope of each neuron, `[neurons]`, float64; anything where the source has no spread.
        least: What the slope of the samples is at least, `[neurons]`, float64.
        most: What it is at most, `[neurons]`, float64.
    """
    extent = source.low.abs().maximum(source.high.abs()).double()
    shift = target.mean - scale * source.mean
    spread = source.deviation > 0
    usable = spread & _computable(scale, shift.abs(), extent)
    if source.is_exact and target.is_exact:
        least, most = least.where(usable, 1.0), most.where(usable, 1.0)
    else:
        farthest = target.mean.abs() + target.mean_error + most * (source.mean.abs() + source.mean_error)
        surely, maybe = _computable(most, farthest, extent), _computable(least, torch.zeros_like(shift), extent)
        least = least.where(usable & surely, least.clamp(max=1)).where(spread, 1.0)
        highest = most.minimum(LARGEST / extent.clamp(min=1)).clamp(min=1)
        most = most.where(usable & surely, highest).where(spread & maybe, 1.0)
    scale, shift = scale.where(usable, 1.0), shift.where(usable, target.mean - source.mean)
    slope_error = (scale - least).maximum(most - scale).clamp(min=0)
    return Fitted(scale, shift, slope_error, target.mean_error + most * source.mean_error)


def _computable(scale: torch.Tensor, shift: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    return (scale <= LARGEST) & (scale * extent + shift <= LARGEST)


def upward(values: torch.Tensor) -> torch.Tensor:
    """Returns the least float32 that is not below each value; ``inf`` beyond them all, NaN for NaN."""
    rounded = values.float()
    return torch.where(rounded < values, rounded.nextafter(torch.full_like(rounded, torch.inf)), rounded)


def _within(low: torch.Tensor, high: torch.Tensor, moved: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns `moved` where `x` is inside ``[low, high]``, and the bits of `x` elsewhere.

    Where nobody differentiates or watches on a CPU, masks of bits choose: ``torch.where`` takes a branch a value there,
    and was seen to take three to five times as long when many values lie outside.

    Args:
        low: `[neurons]`.
        high: `[neurons]`.
        moved: `[..., neurons]`, in the dtype of `x`; it may be written to.
        x: `[..., neurons]`, float32 or float64.
    """
    if _watched() or type(x) is not torch.Tensor or x.device.type != "cpu" or x.is_neg():
        return torch.where((x >= low) & (x <= high), moved, x)
    bits = torch.int32 if x.dtype == torch.float32 else torch.int64
    # 1.0 outside, also for NaN, and 0.0 inside; of their bits less one the sign alone is kept: no ones, and all.
    outside = x.clamp(low, high).ne_(x).view(bits)
    inside = outside.sub_(1).bitwise_right_shift_(8 * x.element_size() - 1)
    own = x.view(bits)
    return moved.view(bits).bitwise_xor_(own).bitwise_and_(inside).bitwise_xor_(own).view(x.dtype)


def _watched() -> bool:
    """Whether gradients, a tracer, a mode, or a transform such as ``vmap`` may see what is computed."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    )


def _blend(scale: torch.Tensor, shift: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of the blended map; strength 0 and 1 give the identity and the map itself, exactly.

    This is ``1 + strength * (scale - 1)``, written so that a tiny scale is not lost beside 1.
    """
    if strength == 1:
        return scale, shift
    return scale * strength + (1 - strength), shift * strength


def _check_finite(what: str, values: torch.Tensor) -> None:
    wrong = (~values.isfinite()).nonzero()[:, 0]
    if len(wrong):
        raise NotFiniteError(what, len(wrong), int(wrong[0]))
