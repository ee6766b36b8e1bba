"""The affine map: the one form that every method's maps take."""

from dataclasses import dataclass
from typing import final

import torch

from act.errors import EmptySupportError, NotFiniteError, ShapeError
from act.marginal import Marginal


@final
@dataclass(frozen=True, eq=False)
class TransportMap:
    """``T(a) = scale * a + shift`` inside ``[low, high]``, ends included, and the identity outside.

    Args:
        scale: Slope of each neuron's map, `[neurons]`, float32, finite.
        shift: Offset of each neuron's map, `[neurons]`, float32, finite.
        low: Lower end of each neuron's support, `[neurons]`, float32, maybe ``-inf``.
        high: Upper end of each neuron's support, `[neurons]`, float32, maybe ``inf``.

    Raises:
        ShapeError: They are not four vectors of one length.
        NotFiniteError: A scale or shift is not finite.
        EmptySupportError: Some neuron's support is empty or NaN.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("scale", "shift", "low", "high"):
            part = getattr(self, name)
            if part.ndim != 1 or part.shape != self.scale.shape:
                wanted = f"one axis, [neurons], as long as the scale's {self.scale.numel()}"
                raise ShapeError(f"the map's {name}", part.shape, wanted)
            object.__setattr__(self, name, part.float())
        _check_finite("the map's scale", self.scale)
        _check_finite("the map's shift", self.shift)
        for neuron in (~(self.low <= self.high)).nonzero()[:, 0].tolist():
            raise EmptySupportError(float(self.low[neuron]), float(self.high[neuron]), neuron)

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return len(self.scale)

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
        inside = (wide >= self.low) & (wide <= self.high)
        return torch.where(inside, (wide * scale).add_(shift), wide).to(x.dtype)

    def at(self, strength: float) -> "TransportMap":
        """Returns the map already blended: ``T.at(s)(x)`` is ``T(x, s)``, for a float64 `x` up to float32."""
        return TransportMap(*_blend(self.scale, self.shift, strength), self.low, self.high)

    def to(self, device: torch.device | str) -> "TransportMap":
        """Returns the same map on a device; itself if it is there already."""
        if self.scale.device == torch.device(device):
            return self
        return TransportMap(*(part.to(device) for part in (self.scale, self.shift, self.low, self.high)))

    def displacement(self, source: Marginal) -> torch.Tensor:
        """Returns how far the map moves each neuron, ``mean |T(a) - a|`` over a law, `[neurons]`, float64."""

        def distance(columns: torch.Tensor, neurons: slice) -> torch.Tensor:
            moved = self._of(neurons)(columns.t()).t()
            return (moved - columns).abs()

        return source.expect(distance)

    def transported(self, source: Marginal) -> torch.Tensor:
        """Returns the share of a law that lies inside the support of each neuron, `[neurons]`, float64."""
        low, high = self.low[:, None], self.high[:, None]
        return source.expect(lambda columns, neurons: (columns >= low[neurons]) & (columns <= high[neurons]))

    def _of(self, neurons: slice) -> "TransportMap":
        return TransportMap(self.scale[neurons], self.shift[neurons], self.low[neurons], self.high[neurons])


def _blend(scale: torch.Tensor, shift: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of the blended map; strength 0 and 1 give the identity and the map itself, exactly.

    This is ``1 + strength * (scale - 1)``, written so that a tiny scale is not lost beside 1.
    """
    return scale * strength + (1 - strength), shift * strength


def _check_finite(what: str, values: torch.Tensor) -> None:
    wrong = (~values.isfinite()).nonzero()[:, 0]
    if len(wrong):
        raise NotFiniteError(what, len(wrong), int(wrong[0]))
