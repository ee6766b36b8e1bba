"""The support: the range of activations that a map moves."""

from typing import Literal, cast

import torch

from act.errors import ShapeError, SupportError, TokensError
from act.marginal import Marginal
from act.tokens import TokenLaw

#: ``observed``: the source law's own range. ``tokens``: the range of single tokens, which is wider than that of pooled
#: activations. ``unbounded``: everything. Two percentiles of the source law, from 0 to 100.
Support = Literal["observed", "tokens", "unbounded"] | tuple[float, float]


def bounds(support: Support, source: Marginal, tokens: TokenLaw | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the lower and upper end of each neuron's support, both `[neurons]`, float32, ends included.

    Ends that float32 does not hold are rounded outward, so that the extremes themselves stay inside. Extremes are exact
    for every law. Percentiles are NumPy's linear ones for samples; of cells they are `Marginal.quantile`'s estimates,
    which lie in the cell of the percentile, or in the next where it is between two samples: as ranks they are off by
    at most the law's `rank_error`, and one sample.

    Args:
        support: What it is.
        source: Law of the source.
        tokens: Law of single tokens of the source, for ``tokens`` alone.

    Raises:
        SupportError: It is neither a known word nor two percentiles in order.
        TokensError: It is ``tokens`` and there is no law of them.
        ShapeError: The law of tokens has another number of neurons.
    """
    match support:
        case "observed":
            return _outward(source.low, -torch.inf), _outward(source.high, torch.inf)
        case "tokens":
            if tokens is None:
                raise TokensError
            if tokens.num_neurons != source.num_neurons:
                found = (tokens.num_samples, tokens.num_neurons)
                raise ShapeError("the law of tokens", found, f"the source law's {source.num_neurons} neurons")
            return _outward(tokens.low, -torch.inf), _outward(tokens.high, torch.inf)
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
