"""The way that is tested against the oracle: forwards in lockstep, and a map fitted at each site."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from act.lockstep import Lockstep, Passage
from act.pooling import Pooling
from schemas.plan import Site
from tests.act.lockstep.oracle import Batch, Maps, Sides, fitted


def in_lockstep(
    modules: Mapping[str, nn.Module],
    sites: Sequence[str],
    sides: Sides,
    pooling: Pooling = "mean",
    method: str = "linear",
    known: Maps | None = None,
    **options: Any,
) -> Maps:
    """Returns the map of each site, all forwards having waited for it.

    Args:
        modules: The model's modules by name.
        sites: The sites, in the order of execution.
        sides: The batches.
        pooling: How real tokens become samples.
        method: How maps are fitted.
        known: Maps of the first sites, which are given before any forward begins.
        options: Of `Lockstep`.
    """
    lockstep = lockstep_of(modules, sites, sides, pooling, **options)
    maps = list(known or [])
    for site, transport in enumerate(maps):
        lockstep.move(site, transport)
    with lockstep.running():
        for site in range(len(maps), len(sites)):
            (samples,) = lockstep.read(site)
            maps.append(fitted(samples[: len(sides[0])], samples[len(sides[0]) :], method))
            lockstep.move(site, maps[site])
    return maps


def lockstep_of(
    modules: Mapping[str, nn.Module], sites: Sequence[str], sides: Sides, pooling: Pooling = "mean", **options: Any
) -> Lockstep:
    """Returns the forwards of both sides, those of the source first; none has begun."""
    passages = [_passage(batch, moved) for side, moved in zip(sides, (True, False), strict=True) for batch in side]
    return Lockstep(modules, [Site(site, "", 0) for site in sites], pooling, passages, **options)


def passages_of(*runs: Callable[[], object]) -> Sides:
    """Returns forwards as batches of the source, whose tokens are all real."""
    return [Batch(run) for run in runs], []


def _passage(batch: Batch, moved: bool) -> Passage:
    return Passage(batch.run, batch.spans, moved)
