"""Steppers on Ray: the units of a sequential fit's source shared out to actors, which come to each site together."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

from pipeline.cluster.crew import Berths, own
from pipeline.errors import WorkerLostError
from pipeline.sequential.drive import AbstractSteppers, BeginAnew
from pipeline.sequential.stepper import Stepper
from schemas.plan import Plan, Unit
from schemas.receipt import Receipt
from schemas.site_map import SiteMap
from schemas.treatment import Treatment

T = TypeVar("T")


@final
class RaySteppers(AbstractSteppers):
    """An actor for each share of the source's units. Values and maps go from actor to actor, not through the driver.

    An actor that dies, or does not come to a site in time, is replaced by one that takes its units through the maps so
    far; the others stay where they are. Where that happens again and again, the units of that place are rehearsed one
    by one, and the fit begins anew without the prompts that end workers.

    Args:
        ray: Ray.
        berths: What the actors get.
        plan: The plan.
        uri: Where the run lies.
        deadline: Seconds in which an actor has to answer a call: all its units come through a part of the model.
        rehearse: Runs units one by one, and returns whether something was found, and written down, with which they
            survive. There are no actors while it runs.
    """

    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        berths: Berths,
        plan: Plan,
        uri: str,
        deadline: float,
        rehearse: Callable[[Sequence[Unit]], bool],
    ) -> None:
        self._ray, self._attempts, self._deadline = ray, plan.spec["failures"]["attempts"], deadline
        self._rehearse = rehearse
        self._most, self._here = berths.num_workers, berths.address == "local"
        self._actor, self._arguments = ray.remote(Stepper).options(**berths.options), (plan, uri)
        self._places: list[_Place] = []
        self._known: list[SiteMap] = []
        self._num_losses = 0

    def begin(self, treatments: Mapping[Unit, Treatment], known: Sequence[SiteMap]) -> None:
        """Shares the units out in their order; shares begin when they are first asked for something."""
        units, self._known = list(treatments), list(known)
        count = min(self._most, len(units))
        bounds = [len(units) * part // max(1, count) for part in range(count + 1)]
        for place in self._places[count:]:
            self._ray.kill(place.actor)
        del self._places[count:]
        self._places += [_Place() for _ in range(count - len(self._places))]
        for place, (start, stop) in zip(self._places, itertools.pairwise(bounds), strict=True):
            place.share, place.begun = {unit: treatments[unit] for unit in units[start:stop]}, False

    def fit(self, treated: str, sites: tuple[int, ...], *, ends: bool) -> list[SiteMap]:
        """Takes all actors to some sites, and fits each site at one of them, in turn."""
        maps = self._persist(lambda: self._fit(treated, sites, ends=ends))
        self._known += maps
        return maps

    def finish(self) -> Iterator[Receipt]:
        """Stores all units, each actor its own."""
        for receipts in self._persist(self._finish):
            yield from receipts

    def close(self) -> None:
        """Ends the actors."""
        for place in self._places:
            if place.actor is not None:
                self._ray.kill(place.actor)
        self._places = []

    def _begin(self) -> None:
        """Has an actor at every place, and begun with its share."""
        new = [place for place in self._places if not place.begun]
        for place in new:
            place.actor = place.actor or self._actor.remote(*self._arguments)
        pids = self._get([place.actor.ready.remote() for place in new])
        for place, pid in zip(new, pids, strict=True):
            place.pid = pid
        self._get([place.actor.begin.remote(place.share, self._known) for place in new])
        for place in new:
            place.begun, place.num_told = True, len(self._known)

    def _fit(self, treated: str, sites: tuple[int, ...], *, ends: bool) -> list[SiteMap]:
        self._begin()
        news = self._get([place.actor.step.remote(sites, self._news(place), ends=ends) for place in self._places])
        for place in self._places:
            place.num_told = len(self._known)
        if any(news):
            raise BeginAnew(news)
        fitted = []
        for site in sites:
            frames = [place.actor.frames.remote(site) for place in self._places]
            parts = [place.actor.part.remote(site, *frames) for place in self._places]
            reducer = self._places[site % len(self._places)]
            fitted.append(reducer.actor.fit.remote(treated, site, *parts))
        return list(self._get(fitted))

    def _finish(self) -> list[list[Receipt]]:
        self._begin()
        ended = self._get([place.actor.finish.remote(self._news(place)) for place in self._places])
        news = [one for one, _ in ended]
        if any(news):
            raise BeginAnew(news)
        return [receipts for _, receipts in ended]

    def _news(self, place: "_Place") -> list[SiteMap]:
        return self._known[place.num_told :]

    def _get(self, refs: list[Any]) -> list[Any]:
        return list(self._ray.get(refs, timeout=self._deadline))

    def _persist(self, work: Callable[[], T]) -> T:
        """Does something that may be done again, until all actors live to its end.

        Raises:
            PipelineError: An actor raised it.
            WorkerLostError: Actors died, or hung, again and again.
        """
        while True:
            try:
                return work()
            except self._ray.exceptions.RayTaskError as exc:
                if not isinstance(own(exc), self._ray.exceptions.RayError):
                    raise own(exc) from exc
            except self._ray.exceptions.RayError:
                pass
            self._replace_lost()

    def _replace_lost(self) -> None:
        """Ends the actors that are gone, or do not answer, so that others begin with their shares.

        Raises:
            BeginAnew: Something was found with which units survive.
            WorkerLostError: That happened too often, and no prompt is to blame.
        """
        pings = {place.actor.ready.remote(): place for place in self._places if place.actor is not None}
        there, late = self._ray.wait(list(pings), num_returns=len(pings), timeout=self._deadline)
        lost = [pings[ref] for ref in late] + [pings[ref] for ref in there if not self._answers(ref)]
        self._num_losses += max(1, len(lost))
        for place in lost:
            self._end(place)
            place.num_losses += 1
        suspects = [place for place in lost if place.num_losses >= self._attempts]
        if suspects:
            self._search(suspects)
        if self._num_losses >= self._attempts * len(self._places):
            raise WorkerLostError("the source, on its way from site to site,", self._num_losses, "died or hung")

    def _search(self, suspects: Sequence["_Place"]) -> None:
        """Searches the units of some places for prompts that end workers, with all actors out of the way.

        Raises:
            BeginAnew: Something was found.
        """
        for place in self._places:
            if place.actor is not None:
                self._end(place)
        for place in suspects:
            place.num_losses = 0
        if self._rehearse([unit for place in suspects for unit in place.share]):
            self._num_losses = 0
            raise BeginAnew(())

    def _answers(self, ref: Any) -> bool:  # noqa: ANN401
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayError:
            return False
        return True

    def _end(self, place: "_Place") -> None:
        """Kills an actor, whatever it does: on this machine by a signal, which a stopped process heeds too."""
        if self._here and place.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(place.pid, signal.SIGKILL)
        self._ray.kill(place.actor)
        place.actor = place.pid = None
        place.begun = False


@final
@dataclass(eq=False)
class _Place:
    """Where an actor is: the actor, its process, its share, whether it began, how many maps it was told, its losses."""

    actor: Any = None
    pid: int | None = None
    share: dict[Unit, Treatment] = field(default_factory=dict)
    begun: bool = False
    num_told: int = 0
    num_losses: int = 0
