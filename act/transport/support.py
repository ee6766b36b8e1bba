"""The support: the range of activations that a map moves."""

from typing import Literal, cast

import torch

from act.errors import SupportError
from act.marginal import Marginal

#: ``observed``: the source law's own range. ``unbounded``: everything. Two percentiles of the source law, 0 to 100.
Support = Literal["observed", "unbounded"] | tuple[float, float]


def bounds(support: Support, source: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the lower and upper end of each neuron's support, both `[neurons]`, float32, ends included.

    Ends that float32 does not hold are rounded outward, so that the source's own extremes stay inside.

    Raises:
        SupportError: It is neither a known word nor two percentiles in order.
    """
    match support:
        case "observed":
            return _outward(source.low, -torch.inf), _outward(source.high, torch.inf)
        case "unbounded":
            high = torch.full_like(source.low, torch.inf, dtype=torch.float32)
            return -high, high
        case (int() | float() as low, int() | float() as high) if 0 <= low < high <= 100:
            ends = source.quantile(torch.tensor([low, high], dtype=torch.float64) / 100)
            return _outward(ends[0], -torch.inf), _outward(ends[1], torch.inf)
    raise SupportError(cast("object", support))


def _outward(values: torch.Tensor, direction: float) -> torch.Tensor:
    """Returns the nearest float32 that does not lie on the inner side of each value."""
    rounded = values.float()
    inner = rounded > values if direction < 0 else rounded < values
    return torch.where(inner, rounded.nextafter(torch.full_like(rounded, direction)), rounded)
