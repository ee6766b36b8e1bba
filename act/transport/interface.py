"""The interface of maps: what a steer, a hook and a report ask of any of them."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from act.marginal import Marginal
from act.tokens import TokenLaw


class AbstractMap(ABC):
    """An increasing map of each neuron's activation inside a support, ends included, and the identity outside."""

    # For mypy alone: a property would become the default of the field by which a dataclass provides it.
    if TYPE_CHECKING:

        @property
        def scale(self) -> torch.Tensor:
            """Slope of each neuron's line, or of the line nearest to its map, `[neurons]`, float32, finite."""

        @property
        def shift(self) -> torch.Tensor:
            """Offset of the same line, `[neurons]`, float32, finite."""

        @property
        def low(self) -> torch.Tensor:
            """Lower end of each neuron's support, `[neurons]`, float32, maybe ``-inf``."""

        @property
        def high(self) -> torch.Tensor:
            """Upper end of each neuron's support, `[neurons]`, float32, maybe ``inf``."""

        @property
        def error(self) -> torch.Tensor:
            """Proven bound on the error of the map, `[neurons]`, float32.

            It is how far the map as it is computed, in float32, is from that of the samples themselves at most, over
            the support or, where that is wider, over the range of the source's samples.
            """

    @property
    @abstractmethod
    def num_neurons(self) -> int:
        """Number of neurons."""

    @property
    @abstractmethod
    def moves(self) -> torch.Tensor:
        """Whether the map is anything but the identity, `[neurons]`, bool."""

    @abstractmethod
    def __call__(self, x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """Returns ``(1 - strength) * x + strength * T(x)``, in the shape and dtype of `x`, which is not written to.

        Args:
            x: Activation, neurons on the last axis, `[..., neurons]`, floating point.
            strength: 0 is the identity, 1 the whole transport; any finite number is possible.

        Raises:
            ShapeError: The last axis has another length.
        """

    @abstractmethod
    def at(self, strength: float) -> "AbstractMap":
        """Returns the map already blended: ``T.at(s)(x)`` is ``T(x, s)``."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "AbstractMap":
        """Returns the same map on a device; itself if it is there already."""

    @abstractmethod
    def of(self, neurons: slice) -> "AbstractMap":
        """Returns the map of some of the neurons."""

    @abstractmethod
    def restricted_to(self, mask: torch.Tensor) -> "AbstractMap":
        """Returns the map that is the identity, with error 0, on every neuron outside a mask.

        Args:
            mask: Which neurons keep their map, `[neurons]`, bool.

        Raises:
            ShapeError: The mask has another length.
        """

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns all numbers of the map by the names that they have in a file, float32."""

    def displacement(self, source: Marginal) -> torch.Tensor:
        """Returns how far the map moves each neuron, ``mean |T(a) - a|`` over a law, `[neurons]`, float64."""

        def distance(values: torch.Tensor, neurons: slice) -> torch.Tensor:
            moved = self.of(neurons)(values.t()).t()
            return (moved - values).abs()

        return source.expect(distance)

    def transported(self, law: TokenLaw) -> torch.Tensor:
        """Returns the share of a law that lies inside the support of each neuron, `[neurons]`, float64."""
        return law.share(self.low, self.high)
