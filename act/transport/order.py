"""Order statistics of some neurons of a law, at ranks or levels that differ between neurons."""

import torch

from act.marginal import Marginal

#: A level this near to an order statistic, relative to its rank, is that order statistic: levels are rounded numbers.
_SNAP = 2.0**-50


def ends_of(law: Marginal, neurons: slice) -> torch.Tensor:
    """Returns how many samples lie in each cell and all before it, `[neurons, cells]`, int64."""
    return law.ends.expand(law.num_neurons, -1)[neurons]


def counts_of(law: Marginal, neurons: slice) -> torch.Tensor:
    """Returns how many samples each cell holds, `[neurons, cells]`, int64."""
    ends = ends_of(law, neurons)
    return ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))


def before(ends: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Returns how many samples lie before each of some cells, `[neurons, several]`, int64.

    Args:
        ends: What `ends_of` returned, `[neurons, cells]`.
        cells: Places of cells, up to one after the last, `[neurons, several]`.
    """
    return ends.gather(1, (cells - 1).clamp(min=0)).where(cells > 0, 0)


def cell_of(ends: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Returns the cell that holds the sample of each rank, counted from 0, `[neurons, ranks]`."""
    return torch.searchsorted(ends.contiguous(), ranks.contiguous(), right=True)


def level(law: Marginal, ranks: torch.Tensor) -> torch.Tensor:
    """Returns at which level ``u`` of a linear quantile function, as NumPy's, each order statistic stands, float64."""
    return ranks.double() / max(1, law.num_samples - 1)


def quantile(law: Marginal, neurons: slice, levels: torch.Tensor) -> torch.Tensor:
    """Returns what `Marginal.quantile` does, at levels that differ between neurons.

    Args:
        law: The law.
        neurons: Which neurons.
        levels: From 0 to 1, `[neurons, levels]`, float64.

    Returns:
        `[neurons, levels]`, float64.
    """
    places = levels * (law.num_samples - 1)
    whole = places.round()
    places = whole.where((places - whole).abs() <= _SNAP * whole, places)
    below = places.floor()
    left, right = (_sample(law, neurons, ranks.long()) for ranks in (below, places.ceil()))
    return torch.lerp(left, right, places - below)


def _sample(law: Marginal, neurons: slice, ranks: torch.Tensor) -> torch.Tensor:
    """Returns about where the sample of each rank lies, `[neurons, ranks]`, float64, see `Marginal.quantile`."""
    if law.is_exact:
        return law.lows[neurons].gather(1, ranks).double()
    ends = ends_of(law, neurons)
    cells = cell_of(ends, ranks)
    low, high = (part[neurons].gather(1, cells).double() for part in (law.lows, law.highs))
    first = before(ends, cells)
    share = (ranks - first + 0.5) / (ends.gather(1, cells) - first)
    return torch.minimum(low + share * (high - low), high)
