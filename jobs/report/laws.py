"""The laws that the report draws: those of the most moved neurons."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from act.marginal import Marginal
from act.steer import Steer
from act.transport import AbstractMap
from jobs.report.pushforward import Pushforward, Values, corners
from pipeline.laws import Laws
from schemas.plan import Plan

NUM_NEURONS = 9
NUM_OF_ONE_SITE = 2

#: Share of each law that is drawn; the rest are its outermost values.
DRAWN = 0.99


@final
@dataclass(frozen=True, order=True)
class Moved:
    """A neuron and how far its map moves it, ``mean |T(a) - a| / sd(a)`` over its source law."""

    displacement: float
    hookpoint: str
    neuron: int


@final
@dataclass(frozen=True, eq=False)
class NeuronLaws:
    """The laws of one neuron, as histograms over the same bins, and its map.

    Args:
        moved: Which neuron, and how far it is moved.
        edges: Edges of the bins, in the unit of the activation, `[bins + 1]`.
        source: Share of the source's samples in each bin, `[bins]`.
        target: The same of the target.
        transported: The same of the source's samples after the map.
        means: Mean of source, target and transported.
        scale: Slope of the map; of a map with knots that of the line nearest to it.
        curve: Corners of the map over its support, as far as the bins reach: activations, and where they go,
            `[corners]` each.
    """

    moved: Moved
    edges: Values
    source: Values
    target: Values
    transported: Values
    means: tuple[float, float, float]
    scale: float
    curve: tuple[Values, Values]


def most_moved(plan: Plan, steer: Steer, laws: Laws) -> tuple[NeuronLaws, ...]:
    """Returns the laws of the `NUM_NEURONS` most moved neurons, at most `NUM_OF_ONE_SITE` of a site, farthest first.

    One site at a time is in memory: each for its source, then those whose neurons are drawn for both sides. A neuron
    without spread is never among them, for it has no law to draw, nor is one that is not moved.

    Raises:
        DamagedRunError: A store does not hold what the receipts say.
    """
    ranked: list[Moved] = []
    for number, site in enumerate(plan.sites):
        found = _rank(site.hookpoint, steer.maps[site.hookpoint], laws.marginal("source", number))
        ranked = heapq.nlargest(NUM_NEURONS, [*ranked, *found])
    drawn: dict[Moved, NeuronLaws] = {}
    for number, site in enumerate(plan.sites):
        here = [moved for moved in ranked if moved.hookpoint == site.hookpoint]
        drawn |= _draw(here, steer.maps[site.hookpoint], laws, number) if here else {}
    return tuple(drawn[moved] for moved in ranked)


def _rank(hookpoint: str, transport: AbstractMap, law: Marginal) -> Iterator[Moved]:
    """Yields those neurons of a site that are moved farthest."""
    moved = torch.where(law.deviation > 0, transport.displacement(law) / law.deviation, 0.0)
    best = moved.topk(min(NUM_OF_ONE_SITE, len(moved)))
    for displacement, neuron in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if displacement > 0:
            yield Moved(displacement, hookpoint, neuron)


def _draw(moved: Sequence[Moved], transport: AbstractMap, laws: Laws, site: int) -> dict[Moved, NeuronLaws]:
    source, target = laws.marginal("source", site), laws.marginal("target", site)
    return {
        one: _laws(
            one, transport.of(slice(one.neuron, one.neuron + 1)), _of(source, one.neuron), _of(target, one.neuron)
        )
        for one in moved
    }


def _laws(moved: Moved, transport: AbstractMap, source: Marginal, target: Marginal) -> NeuronLaws:
    transported = Pushforward.of(source, transport)
    edges = _edges(source, target, transported)
    return NeuronLaws(
        moved=moved,
        edges=edges,
        source=_shares(source, edges),
        target=_shares(target, edges),
        transported=transported.shares(edges),
        means=(float(source.mean[0]), float(target.mean[0]), transported.mean),
        scale=float(transport.tensors()["scale"][0]),
        curve=_curve(transport, float(edges[0]), float(edges[-1])),
    )


def _edges(source: Marginal, target: Marginal, transported: Pushforward) -> Values:
    """Bins of one width over the central part of all laws together, finer the more samples there are."""
    tail = (1 - DRAWN) / 2
    probs = np.array([0, tail, 1 - tail, 1])
    pair = [law.quantile(torch.from_numpy(probs))[:, 0].numpy() for law in (source, target)]
    ends = np.stack([*pair, transported.quantile(probs)])
    low, high = ends[:, 1].min(), ends[:, 2].max()
    if (ends[:, 1] == ends[:, 2]).any():  # nearly all samples are one value, and the others would all be left out
        low, high = ends[:, 0].min(), ends[:, 3].max()
    room = 0.03 * (high - low)
    num_samples = min(source.num_samples, target.num_samples)
    num_bins = int(np.clip(2.5 * np.sqrt(num_samples), 16, 60))
    return np.linspace(low - room, high + room, num_bins + 1)


def _shares(law: Marginal, edges: Values) -> Values:
    """Returns the share of a law in each bin, as `Pushforward.shares` does."""
    return law.cdf_below(torch.from_numpy(edges)[:, None])[:, 0].diff().numpy()


def _curve(transport: AbstractMap, left: float, right: float) -> tuple[Values, Values]:
    low, high = np.clip([float(transport.low[0]), float(transport.high[0])], left, right)
    bends = corners(transport).double().numpy()
    x = np.unique([low, *bends[(bends > low) & (bends < high)], high])
    return x, transport(torch.from_numpy(x)[:, None])[:, 0].numpy()


def _of(law: Marginal, neuron: int) -> Marginal:
    """Returns the law of one neuron."""
    here = slice(neuron, neuron + 1)
    lows = law.lows[here]
    highs, ends = lows if law.is_exact else law.highs[here], law.ends[here] if len(law.ends) > 1 else law.ends
    moments = (law.mean, law.variance, law.mean_error, law.deviation_error, law.edge_error)
    return Marginal(lows, highs, ends, *(part[here] for part in moments))
