"""How far laws of cells, and maps fitted to them, are from those of the samples themselves, and whether proofs hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from act.marginal import Marginal
from act.transport import AbstractMap, fit
from act.transport.coupling import couple

Floats = NDArray[np.float64]

#: Quantiles that matter for a map, and the outermost that are promised.
INNER, OUTER = tuple(place / 100 for place in range(1, 100)), (0.001, 0.999)

#: The samples at which a quantile map is compared with the true one: all near either end, the others sparsely.
_ENDS, _BETWEEN = 1_000, 10_000

#: What the true moments are off by, computed in float64.
_ROUNDING = 1e-9


@final
@dataclass(frozen=True, eq=False)
class Both:
    """The law of each neuron twice.

    Args:
        cells: Of cells.
        samples: Of the samples themselves.
    """

    cells: Marginal
    samples: Marginal

    @cached_property
    def spread(self) -> torch.Tensor:
        """Interquartile range of the samples, or their standard deviation where that is 0, `[neurons]`, float64."""
        low, high = self.samples.quantile(torch.tensor([0.25, 0.75]))
        return (high - low).where(high > low, self.samples.variance.sqrt())

    def quantile_errors(self, probs: Sequence[float]) -> torch.Tensor:
        """Returns the worst error of some quantiles in units of the spread, `[neurons]`; 0 for a constant neuron."""
        levels = torch.tensor(probs, dtype=torch.float64)
        errors = (self.cells.quantile(levels) - self.samples.quantile(levels)).abs().amax(dim=0)
        return errors / self.spread.where((self.spread > 0) | (errors > 0), 1.0)


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """What was fitted to a source and a target, beside the truth, all `[neurons]`, float64.

    Args:
        slope: Relative error of Linear-AcT's slope.
        proven: The bounds that the maps state, by method, in standard deviations of the target.
        true: Their errors, the same way.
        held: Whether the truth lay within each of several proven bounds.
    """

    slope: torch.Tensor
    proven: Mapping[str, torch.Tensor]
    true: Mapping[str, torch.Tensor]
    held: Mapping[str, torch.Tensor]


def judge(source: Both, target: Both) -> Fitted:
    """Returns the linear and the quantile map of the cells, judged by the samples; equally many on both sides."""
    scale, shift = exact_lines(source.samples, target.samples)
    maps = {method: fit(method, source.cells, target.cells) for method in ("linear", "quantile")}
    errors = {
        "linear": _line_errors(maps["linear"], source.samples, scale, shift),
        "quantile": _quantile_map_errors(maps["quantile"], source.samples, target.samples),
    }
    held = {f"{name} map": errors[name] <= maps[name].error for name in maps}
    held["correlation"] = _correlation_holds(source, target, scale)
    deviation = target.samples.variance.sqrt()
    linear = maps["linear"].tensors()["scale"].double()
    return Fitted(
        slope=(linear - scale).abs() / scale,
        proven={name: maps[name].error.double() / deviation for name in maps},
        true={name: errors[name] / deviation for name in maps},
        held=held,
    )


def slope_errors(source: Both, target: Both, exact_scale: torch.Tensor) -> torch.Tensor:
    """Returns the relative error of Linear-AcT's slope, `[neurons]`."""
    fitted = fit("linear", source.cells, target.cells).tensors()["scale"].double()
    return (fitted - exact_scale).abs() / exact_scale


def law_holds(law: Both) -> dict[str, torch.Tensor]:
    """Returns whether the truth lay within each of several bounds that a law of cells states, `[neurons]`."""
    levels = torch.tensor([*INNER, *OUTER], dtype=torch.float64)
    true = law.samples.quantile(levels)
    lower, upper = law.cells.quantile_bounds(levels)
    at = true.float()
    least, most = law.cells.cdf_bounds(at)
    share, below = law.samples.cdf(at), law.samples.cdf_below(at)
    rank = torch.maximum(law.cells.cdf(at) - share, below - law.cells.cdf(at)).clamp(min=0)
    mean, deviation = _moments(law.samples)
    slack = _ROUNDING * deviation + _ROUNDING * 1e-3 * mean.abs()
    return {
        "quantiles": ((lower <= true) & (true <= upper)).all(dim=0),
        "shares": ((least <= share) & (share <= most)).all(dim=0),
        "rank error": (rank <= law.cells.rank_error + 1 / law.samples.num_samples).all(dim=0),
        "mean": (law.cells.mean - mean).abs() <= law.cells.mean_error + slack,
        "deviation": (law.cells.deviation - deviation).abs() <= law.cells.deviation_error + slack,
    }


def exact_lines(source: Marginal, target: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns slope and offset of Linear-AcT, `[neurons]` each, float64, by its definition, from sorted samples."""
    lines = [_exact_line(a, b) for a, b in _pairs(source, target)]
    scale, shift = torch.tensor(lines, dtype=torch.float64).T
    return scale, shift


def _exact_line(a: Floats, b: Floats) -> tuple[float, float]:
    mean_a, mean_b = a.mean(), b.mean()
    centred = a - mean_a
    square = float(centred @ centred)
    # Definition 3.1 of arXiv 2410.23054; no spread gives slope 1.
    scale = float(centred @ (b - mean_b)) / square if square else 1.0
    return scale, float(mean_b - scale * mean_a)


def _moments(law: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    columns = law.lows.double().numpy()
    return torch.from_numpy(columns.mean(axis=1)), torch.from_numpy(columns.std(axis=1))


def _pairs(source: Marginal, target: Marginal) -> Iterator[tuple[Floats, Floats]]:
    if source.num_samples != target.num_samples:
        raise ValueError(f"{source.num_samples} samples of the source and {target.num_samples} of the target")
    for a, b in zip(source.lows, target.lows, strict=True):
        yield a.double().numpy(), b.double().numpy()


def _line_errors(fitted: AbstractMap, source: Marginal, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The largest distance of two lines over the range of the source is at one of its ends."""
    ends = torch.stack([source.low, source.high])
    return (fitted(ends).double() - (scale * ends.double() + shift)).abs().amax(dim=0)


def _quantile_map_errors(fitted: AbstractMap, source: Marginal, target: Marginal) -> torch.Tensor:
    """The full map takes a sample to the target's sample of the same rank, of equal ones to that of the largest."""
    num = source.num_samples
    every = np.linspace(0, num - 1, min(num, _BETWEEN)).astype(np.int64)
    ranks = np.unique(np.concatenate([np.arange(min(_ENDS, num)), every, np.arange(max(0, num - _ENDS), num)]))
    at = source.lows[:, ranks]
    last = torch.searchsorted(source.lows, at, right=True) - 1
    wanted = target.lows.gather(1, last)
    return (fitted(at.t()).t().double() - wanted.double()).abs().amax(dim=1)


def _correlation_holds(source: Both, target: Both, scale: torch.Tensor) -> torch.Tensor:
    found = couple(source.cells, target.cells)
    a, b = source.samples.variance.sqrt(), target.samples.variance.sqrt()
    true = (scale * a / b).where((a > 0) & (b > 0), 0.0)
    return (found.lowest - _ROUNDING <= true) & (true <= found.highest + _ROUNDING)
