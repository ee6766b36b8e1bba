"""The laws that the report draws: those of the most moved neurons, read from the store."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from act.marginal import Marginal
from act.steer import Steer
from act.transport import TransportMap
from pipeline.store import ActivationStore
from schemas.plan import CHUNK_NEURONS, Plan, SideName, Site
from schemas.receipt import Receipt

NUM_NEURONS = 9
NUM_OF_ONE_SITE = 2

#: Samples that are read at once: 64 MiB of float32.
READ_SIZE = 1 << 24

#: Share of each law that is drawn; the rest are its outermost values.
DRAWN = 0.99

Receipts = Mapping[SideName, Sequence[Receipt]]
Values = NDArray[np.float64]

#: Reads the samples of some columns of the store, `[samples, columns]`.
Read = Callable[[slice], NDArray[np.float32]]


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
        transport: The neuron's map, of one neuron.
    """

    moved: Moved
    edges: Values
    source: Values
    target: Values
    transported: Values
    means: tuple[float, float, float]
    transport: TransportMap

    @property
    def scale(self) -> float:
        """Slope of the map."""
        return float(self.transport.scale[0])


def most_moved(plan: Plan, steer: Steer, store: ActivationStore, receipts: Receipts) -> tuple[NeuronLaws, ...]:
    """Returns the laws of the `NUM_NEURONS` most moved neurons, at most `NUM_OF_ONE_SITE` of a site, farthest first.

    The source side is read once, site by site, and a wide side in parts: at most `READ_SIZE` samples, or
    `CHUNK_NEURONS` neurons, are in memory. A neuron without spread is never among them: it has no law to draw.

    Raises:
        DamagedRunError: The store does not hold what the receipts say.
    """
    ranked: list[Moved] = []
    columns = plan.columns
    num_rows = plan.source.num_prompts * plan.rows_per_prompt
    for site in plan.sites:
        parts = _parts(columns[site.hookpoint], num_rows)
        found = _rank(
            site, steer.maps[site.hookpoint], parts, lambda part: store.samples("source", part, receipts["source"])
        )
        ranked = heapq.nlargest(NUM_NEURONS, [*ranked, *heapq.nlargest(NUM_OF_ONE_SITE, found)])
    return tuple(_laws(plan, moved, steer, (store, receipts)) for moved in ranked)


def _rank(site: Site, transport: TransportMap, parts: Iterable[slice], read: Read) -> Iterator[Moved]:
    """Yields, of the site's neurons, some that are moved farthest; `parts` are its columns of the store, in order."""
    start = 0
    for part in parts:
        neurons = slice(start, start := start + part.stop - part.start)
        law = Marginal.from_samples(torch.from_numpy(read(part)))
        spread = law.variance.sqrt()
        moved = torch.where(spread > 0, _of(transport, neurons).displacement(law) / spread, -torch.inf)
        best = moved.topk(min(NUM_OF_ONE_SITE, len(moved)))
        for displacement, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if displacement >= 0:
                yield Moved(displacement, site.hookpoint, neurons.start + place)


def _parts(columns: slice, num_rows: int) -> Iterator[slice]:
    step = max(1, READ_SIZE // max(1, num_rows) // CHUNK_NEURONS) * CHUNK_NEURONS
    for start in range(columns.start, columns.stop, step):
        yield slice(start, min(start + step, columns.stop))


def _laws(plan: Plan, moved: Moved, steer: Steer, read: tuple[ActivationStore, Receipts]) -> NeuronLaws:
    store, receipts = read
    column = plan.columns[moved.hookpoint].start + moved.neuron
    here = slice(column, column + 1)
    transport = _of(steer.maps[moved.hookpoint], slice(moved.neuron, moved.neuron + 1))
    source = store.samples("source", here, receipts["source"])
    target = store.samples("target", here, receipts["target"])
    transported = transport(torch.from_numpy(source)).numpy()
    laws = [samples[:, 0].astype(np.float64) for samples in (source, target, transported)]
    edges = _edges(laws)
    before, wanted, after = (np.histogram(samples, edges)[0] / len(samples) for samples in laws)
    means = float(laws[0].mean()), float(laws[1].mean()), float(laws[2].mean())
    return NeuronLaws(moved, edges, before, wanted, after, means, transport)


def _edges(laws: Sequence[Values]) -> Values:
    """Bins of one width over the central part of all laws together, finer the more samples there are."""
    tail = (1 - DRAWN) / 2
    ends = np.array([np.quantile(samples, [0, tail, 1 - tail, 1]) for samples in laws])
    low, high = ends[:, 1].min(), ends[:, 2].max()
    if (ends[:, 1] == ends[:, 2]).any():  # nearly all samples are one value, and the others would all be left out
        low, high = ends[:, 0].min(), ends[:, 3].max()
    room = 0.03 * (high - low)
    num_bins = int(np.clip(2.5 * np.sqrt(min(map(len, laws))), 16, 60))
    return np.linspace(low - room, high + room, num_bins + 1)


def _of(transport: TransportMap, neurons: slice) -> TransportMap:
    parts = (transport.scale, transport.shift, transport.low, transport.high)
    return TransportMap(*(part[neurons] for part in parts))
