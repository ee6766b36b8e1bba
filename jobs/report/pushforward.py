"""The law of a neuron's activation once its map has moved it."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from act.marginal import Marginal
from act.transport import AbstractMap

Values = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a law that keeps its order when it is moved: what lies below, inside or above the support.

    Args:
        lows: Lower end of each piece, ascending, `[pieces]`.
        highs: Upper end of each piece, `[pieces]`; the lower end itself where all of it is one value.
        shares: Share of the law in each piece, spread evenly between its ends, `[pieces]`.
    """

    lows: Values
    highs: Values
    shares: Values

    def reached(self, x: Values, side: Literal["left", "right"]) -> Values:
        """Returns the share of the law that lies in this part and below `x`; from the right, up to and with it."""
        before = np.concatenate([[0.0], self.shares.cumsum()])
        place = np.searchsorted(self.highs, x, side)
        piece = np.minimum(place, len(self.highs) - 1)
        low, width = self.lows[piece], self.highs[piece] - self.lows[piece]
        entered = (width > 0) & (place < len(self.highs))
        within: Values = np.where(entered, np.clip((x - low) / np.where(width > 0, width, 1), 0, 1), 0)
        return before[place] + within * self.shares[piece]


@final
@dataclass(frozen=True, eq=False)
class Pushforward:
    """The law of ``T(a)`` of one neuron, for a law of `a`. Built by `of`.

    A map is a line between few corners, and the identity outside its support. So what a cell spreads evenly stays
    spread evenly, once the cell is cut at these.

    Args:
        stretches: The law below, inside and above the support; they may overlap. Those that hold nothing are left out.
        num_samples: Number of samples that the law rests on.
        mean: Mean of the law.
    """

    stretches: tuple[Stretch, ...]
    num_samples: int
    mean: float

    @classmethod
    def of(cls, law: Marginal, transport: AbstractMap) -> "Pushforward":
        """Returns the law that a map makes of a law, both of one neuron.

        The pieces may be off the law's own mean, which is exact. The mean is corrected by as much, times the average
        slope: for a line it is where the line takes the law's mean.
        """
        ends, shares = _pieces(law, corners(transport))
        lows, highs = ends[:-1], ends[1:]
        inside, above = (lows >= transport.low) & (highs <= transport.high), highs > transport.high
        before = [x[:, 0].double().numpy() for x in (lows, highs)]
        after = [torch.where(inside, transport(x), x)[:, 0].double().numpy() for x in (lows, highs)]
        place = torch.where(inside, 1, torch.where(above, 2, 0))[:, 0].numpy()
        held = [(place == number) & (shares > 0) for number in range(3)]
        stretches = tuple(Stretch(after[0][here], after[1][here], shares[here]) for here in held if here.any())
        off = float(law.mean[0]) - shares @ (before[0] + before[1]) / 2
        mean = shares @ (after[0] + after[1]) / 2 + off * _slope(before[1] - before[0], after[1] - after[0], shares)
        return cls(stretches, law.num_samples, float(mean))

    def shares(self, edges: Values) -> Values:
        """Returns the share in each bin, `[bins]`; an edge belongs to the bin above it.

        Args:
            edges: Edges of the bins, ascending, `[bins + 1]`.
        """
        return np.diff(self._reached(edges, "left"))

    def quantile(self, probs: Values) -> Values:
        """Returns quantiles, `[probs]`, linear between ranks as those of `Marginal` are.

        The sample with the rank `k`, counted from 0, lies where the law has reached ``(k + 1/2) / n``.
        """
        x = np.unique(np.concatenate([part for one in self.stretches for part in (one.lows, one.highs)]))
        levels = np.stack([self._reached(x, "left"), self._reached(x, "right")], axis=1).ravel()
        places = probs * (self.num_samples - 1)
        ranks = np.stack([np.floor(places), np.ceil(places)])
        below, above = np.interp((ranks + 0.5) / self.num_samples, levels, x.repeat(2))
        quantiles: Values = below + (places - ranks[0]) * (above - below)
        return quantiles

    def _reached(self, x: Values, side: Literal["left", "right"]) -> Values:
        reached: Values = np.sum([one.reached(x, side) for one in self.stretches], axis=0)
        return reached


def corners(transport: AbstractMap) -> torch.Tensor:
    """Returns where the map of one neuron may bend: the finite ends of its support, and knots, `[corners]`, float32."""
    parts = transport.tensors()
    found = torch.cat([parts[name].flatten() for name in ("low", "high", "knots_x") if name in parts])
    return found[found.isfinite()]


def _pieces(law: Marginal, cuts: torch.Tensor) -> tuple[torch.Tensor, Values]:
    """Returns a law in pieces: their ends, `[pieces + 1, 1]`, and shares, `[pieces]`.

    The law is cut at the ends of its cells and at `cuts`. Each of these is a piece of one value, and so is what lies
    between it and the next.
    """
    found = torch.cat([law.lows[0], law.highs[0], cuts.to(law.lows.dtype)])
    ends = torch.from_numpy(np.unique(found.numpy()))[:, None]
    levels = torch.stack([law.cdf_below(ends), law.cdf(ends)], dim=1).flatten()
    return ends.repeat_interleave(2, dim=0), levels.diff().numpy()


def _slope(before: Values, after: Values, shares: Values) -> float:
    """Returns the average slope over the pieces that have width; 0 if none has."""
    wide = (before > 0) & (shares > 0)
    return float(shares[wide] @ (after[wide] / before[wide]) / shares[wide].sum()) if wide.any() else 0.0
