"""The order in which forwards visit sites, when not all of them visit the same."""

import itertools
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from act.errors import SiteOrderError
from schemas.plan import Site


def in_order(visits: Sequence[Sequence[Site]]) -> tuple[Site, ...]:
    """Returns all sites that some forward visits, each after those that any forward visits before it.

    A site that is visited several times stands where it is visited first. Sites that no forward has in common with
    others keep the order in which forwards came.

    Args:
        visits: What each forward visits, one a visit, in the order of execution.

    Raises:
        SiteOrderError: Two forwards visit sites in opposite orders.
    """
    firsts = [list(dict.fromkeys(forward)) for forward in visits]
    places = {site: place for place, site in enumerate(dict.fromkeys(site for first in firsts for site in first))}
    graph: TopologicalSorter[Site] = TopologicalSorter(dict.fromkeys(places, ()))
    for first in firsts:
        for before, after in itertools.pairwise(first):
            graph.add(after, before)
    try:
        graph.prepare()
    except CycleError as exc:
        first, second, *_ = (site.hookpoint for site in exc.args[1])
        raise SiteOrderError(first, second) from exc
    ordered: list[Site] = []
    ready: list[Site] = []
    while graph.is_active():
        ready = sorted([*ready, *graph.get_ready()], key=places.__getitem__)
        ordered.append(ready.pop(0))
        graph.done(ordered[-1])
    return tuple(ordered)
