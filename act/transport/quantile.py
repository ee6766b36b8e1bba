"""The full monotone map: the transport between two laws of any shape."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from act.errors import KnotsError, NotFiniteError, ShapeError
from act.marginal import Marginal
from act.transport import knots
from act.transport.affine import ROUNDING, SMALLEST, TransportMap
from act.transport.interface import AbstractMap
from act.transport.line import line_at, line_error, search

#: Activations that are moved at once on a CPU, so that what is gathered stays in its caches.
_AT_ONCE = 1 << 18

#: Roundings in float32: those of a number itself, of the knots, the line and the map of the samples; and those of a
#: share of a step between two knots.
_OF_VALUES, _OF_STEPS = 4, 8


@final
@dataclass(frozen=True, eq=False)
class QuantileMap(AbstractMap):
    """``T = Q_b ∘ F_a`` as a line through knots inside ``[low, high]``, ends included, and the identity outside.

    Beyond its outermost knots, where a support reaches further than they do, the line goes on with slope 1.

    Args:
        affine: Linear-AcT's scale and shift, for what can only multiply and add; the support; the error of this map.
        knots_x: Ascending, `[neurons, knots]`, float32, finite. Padding repeats the last knot.
        knots_y: `[neurons, knots]`, float32, finite.

    Raises:
        ShapeError: The knots are not two tensors of one shape with a row a neuron.
        NotFiniteError: A knot, or the distance of two, is not finite in float32.
        KnotsError: Some neuron's knots do not ascend.
    """

    affine: TransportMap
    knots_x: torch.Tensor
    knots_y: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("knots_x", "knots_y"):
            part = getattr(self, name)
            if part.ndim != 2 or part.shape != self.knots_x.shape or not part.shape[1]:
                raise ShapeError(f"the map's {name}", part.shape, f"[{self.num_neurons}, knots], as the other's")
            if len(part) != self.num_neurons:
                raise ShapeError(f"the map's {name}", part.shape, f"{self.num_neurons} neurons, as its scale")
            object.__setattr__(self, name, part.float())
        for name in ("knots_x", "knots_y"):
            part = getattr(self, name)
            wrong = (~_width(part).isfinite()).nonzero()[:, 0]
            if len(wrong):
                raise NotFiniteError(f"the map's {name}", len(wrong), int(wrong[0]))
        for neuron in (self.knots_x.diff(dim=1) < 0).any(dim=1).nonzero()[:, 0].tolist():
            raise KnotsError(neuron)

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.affine.num_neurons

    @property
    def scale(self) -> torch.Tensor:
        """Slope of Linear-AcT's map, `[neurons]`, float32."""
        return self.affine.scale

    @property
    def shift(self) -> torch.Tensor:
        """Offset of Linear-AcT's map, `[neurons]`, float32."""
        return self.affine.shift

    @property
    def low(self) -> torch.Tensor:
        """Lower end of each neuron's support, `[neurons]`, float32, maybe ``-inf``."""
        return self.affine.low

    @property
    def high(self) -> torch.Tensor:
        """Upper end of each neuron's support, `[neurons]`, float32, maybe ``inf``."""
        return self.affine.high

    @property
    def error(self) -> torch.Tensor:
        """Proven bound on the error of the map, `[neurons]`, float32, see `AbstractMap`."""
        return self.affine.error

    @cached_property
    def moves(self) -> torch.Tensor:
        """Whether the map is anything but the identity, `[neurons]`, bool."""
        return (self.knots_x != self.knots_y).any(dim=1)

    def __call__(self, x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """Returns ``(1 - strength) * x + strength * T(x)``, in the shape and dtype of `x`, which is not written to.

        Inside the support that is the line through the blended knots, in float32 (float64 for a float64 `x`) and
        rounded once to the dtype of `x`; outside it, and at neurons that the map does not move, it is the bits of `x`.

        Args:
            x: Activation, neurons on the last axis, `[..., neurons]`, floating point.
            strength: 0 is the identity, 1 the whole transport; any finite number is possible.

        Raises:
            ShapeError: The last axis has another length.
        """
        if x.ndim == 0 or x.shape[-1] != self.num_neurons:
            raise ShapeError("the activation", x.shape, f"{self.num_neurons} neurons on the last axis")
        if strength != 1:
            return self.at(strength)(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        inside = (wide >= self.low) & (wide <= self.high) & self.moves
        return torch.where(inside, self._line(wide.reshape(-1, self.num_neurons)).reshape(x.shape), wide).to(x.dtype)

    def at(self, strength: float) -> "QuantileMap":
        """Returns the map already blended: ``T.at(s)(x)`` is ``T(x, s)``.

        Its error is ``|s|`` times that of the map, plus what float32 adds to a blend of two.
        """
        blended = self.knots_y * strength + self.knots_x * (1 - strength)
        # Strength 0 is the identity exactly; a product of 0 may round, or lose a sign.
        knots_y = {0.0: self.knots_x, 1.0: self.knots_y}.get(float(strength), blended)
        return QuantileMap(self.affine.at(strength), self.knots_x, knots_y)

    def to(self, device: torch.device | str) -> "QuantileMap":
        """Returns the same map on a device; itself if it is there already."""
        if self.knots_x.device == torch.device(device):
            return self
        return QuantileMap(self.affine.to(device), self.knots_x.to(device), self.knots_y.to(device))

    def of(self, neurons: slice) -> "QuantileMap":
        """Returns the map of some of the neurons."""
        return QuantileMap(self.affine.of(neurons), self.knots_x[neurons], self.knots_y[neurons])

    def restricted_to(self, mask: torch.Tensor) -> "QuantileMap":
        """Returns the map that is the identity, with error 0, on every neuron outside a mask.

        Args:
            mask: Which neurons keep their map, `[neurons]`, bool.

        Raises:
            ShapeError: The mask has another length.
        """
        return QuantileMap(
            self.affine.restricted_to(mask), self.knots_x, self.knots_y.where(mask[:, None], self.knots_x)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the affine parts, each `[neurons]`, and the knots, `[neurons, knots]`, by their names, float32."""
        return {**self.affine.tensors(), "knots_x": self.knots_x, "knots_y": self.knots_y}

    def _line(self, x: torch.Tensor) -> torch.Tensor:
        """The line at activations `[samples, neurons]`, a block of neurons at a time."""
        moved = torch.empty_like(x)
        step = max(1, _AT_ONCE // max(1, len(x))) if x.device.type == "cpu" else self.num_neurons
        for start in range(0, self.num_neurons, step):
            here = slice(start, start + step)
            knots_x, knots_y = self.knots_x[here].to(x.dtype), self.knots_y[here].to(x.dtype)
            part = x[:, here].t().contiguous()
            moved[:, here] = line_at(knots_x, knots_y, part, search(knots_x, part)).t()
        return moved


def fit_quantile(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the knots of ``T = Q_b ∘ F_a``, x and y `[neurons, knots]` float32, and its error `[neurons]` float64.

    The monotone transport of each neuron, whatever the shapes of its laws; Linear-AcT is the line nearest to it:
    section 3 of Rodriguez et al., arXiv 2410.23054. Needs laws. The paper pools by mean.

    `Q_b` is linear between order statistics, as in NumPy, and `F_a` is the inverse of such a `Q_a`; at a value that
    many samples share it has the largest of their levels, so that value goes to the upper end of the target's samples
    at these levels. There are at most `knots.MOST_KNOTS` knots, see `act.transport.knots`, and the error is that of
    `line_error`, with what float32 adds.

    A neuron whose source has no spread in float32 is moved by the difference of the means. So is one whose laws are
    wider than float32 is; of its error nothing is known.
    """
    xs, ys = knots.choose(source, target)
    spread = source.low.float() < source.high.float()
    narrow = _width(xs).isfinite() & _width(ys).isfinite()
    moved = source.low.double() + (target.mean - source.mean)
    kept = (spread & narrow)[:, None]
    xs, ys = xs.where(kept, source.low.float()[:, None]), ys.where(kept, moved.float()[:, None])
    means = source.mean_error + target.mean_error
    # What has a spread in float64 alone goes to somewhere in the target's range.
    anywhere = (target.high - moved).maximum(moved - target.low).maximum(means)
    still = means.where(source.low == source.high, anywhere)
    error = line_error(source, target, xs, ys).where(spread, still).masked_fill(~narrow, torch.inf)
    values, steps = ys.double().abs().amax(dim=1), ys.double().diff(dim=1, prepend=ys[:, :1].double()).amax(dim=1)
    # The map of the samples is rounded too, and may be larger than this one by the error.
    rounding = ROUNDING * (_OF_VALUES * (values + error) + _OF_STEPS * steps)
    return xs, ys, error + rounding + _OF_STEPS * SMALLEST


def _width(knots: torch.Tensor) -> torch.Tensor:
    return knots.amax(dim=1) - knots.amin(dim=1)
