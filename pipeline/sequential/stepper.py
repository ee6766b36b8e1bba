"""A stepper: some units of the source that go through the model together, from site to site."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import final

import torch
from torch import nn

from act.errors import SiteVisitError
from act.hookpoint import modules_of
from act.lockstep import Lockstep, Passage
from act.lockstep.spill import Spill
from act.sequential import passes
from act.steer import Steer
from act.transport import AbstractMap
from pipeline import machine
from pipeline.errors import BatchMemoryError
from pipeline.extract import Extractor, lighter
from pipeline.former import former_of
from pipeline.laws import Laws
from pipeline.models import AbstractModel, MicroBatch
from pipeline.sequential.part import Part, fit_parts, merged
from pipeline.sequential.site_maps import SiteMaps, frames_of, site_map, transport_of
from pipeline.sequential.unit_work import Frames, UnitWork
from pipeline.sketch import Grid, HistogramSketch
from pipeline.storage import storage_at
from schemas.plan import Plan, Unit
from schemas.receipt import Quarantined, Receipt, Split
from schemas.site_map import SiteMap
from schemas.treatment import Treatment


@final
@dataclass(frozen=True)
class News:
    """What turned out about units on their way: the fit begins anew with it. False where nothing did.

    Args:
        lost: Prompts that do not count, and why.
        splits: Units with micro-batches that are to run in pieces.
    """

    lost: tuple[Quarantined, ...]
    splits: tuple[tuple[Unit, tuple[Split, ...]], ...]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.lost or self.splits)


NOTHING = News((), ())


class _NoRoomError(Exception):
    """A micro-batch does not fit in memory: that of the unit at a place."""

    def __init__(self, place: int, error: BatchMemoryError) -> None:
        super().__init__(place, error)
        self.place, self.error = place, error


@final
class Stepper:
    """Takes units of the source through the model in lockstep, and stores them once all sites are behind them.

    A plain class: only `pipeline.cluster` makes it an actor. `begin` starts from the first site, through those whose
    maps are known; after it every call may be repeated. A site's samples are those that its map is fitted on: of a fit
    in blocks each block's come from a pass of its own, through the maps of the blocks before.

    Args:
        plan: The plan.
        uri: Where the run lies.
        extractor: Has the model; None makes one.
    """

    def __init__(self, plan: Plan, uri: str, extractor: Extractor | None = None) -> None:
        self._storage = storage = storage_at(uri)
        self._plan, self._extractor = plan, extractor or Extractor(plan, uri)
        self._log, self._laws = SiteMaps(storage, plan), Laws(storage, plan)
        self._treatments: dict[Unit, Treatment] = {}
        self._works: list[UnitWork] = []
        self._frames: dict[int, Frames] = {}
        self._known: dict[int, SiteMap] = {}
        self._passes = [range(groups[0].start, groups[-1].stop) for groups in passes(len(plan.sites), plan.blocks)]
        self._pieces: list[tuple[int, int, MicroBatch]] = []
        self._pass, self._num_passed = -1, 0
        self._lockstep: Lockstep | None = None
        self._stack = ExitStack()
        self._at: tuple[int, ...] = ()
        self._receipts: list[Receipt] | None = None
        self._begun = 0.0

    def ready(self) -> int:
        """Loads the model, and returns the process id of the worker.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        return self._extractor.ready()

    def begin(self, treatments: Mapping[Unit, Treatment], known: Sequence[SiteMap]) -> None:
        """Begins with some units.

        Args:
            treatments: The units in their order, and how each is treated.
            known: The maps of the sites that are behind already.
        """
        between_passes = 0 <= self._pass < self._num_passed
        if not between_passes or self._treatments != dict(treatments):
            self._lay_out(treatments)
        self._learn(known)

    @cached_property
    def _former(self) -> Steer | None:
        return former_of(self._storage, self._plan)

    def _taken(self, site: int) -> AbstractMap | None:
        """Returns the map that a site has in the steer to start from, if it has one there."""
        return None if self._former is None else self._former.maps.get(self._plan.sites[site].hookpoint)

    def step(self, sites: tuple[int, ...], known: Sequence[SiteMap] = (), *, ends: bool = False) -> News:
        """Takes all units up to some sites.

        Args:
            sites: Sites that are fitted together, in order.
            known: The maps of sites before them that it was not told yet.
            ends: Whether nothing is asked of what lies behind them.

        Returns:
            What was not known of the units before.

        Raises:
            SiteVisitError: Some micro-batch does not visit a site.
        """
        if sites != self._at:
            try:
                self._go(sites, known, ends=ends)
            except _NoRoomError as exc:
                return self._lighter(exc)
        lost = tuple(one for work in self._works for site in sites for one in work.odd(site))
        return News(lost, ())

    def frames(self, site: int) -> Frames | None:
        """Returns the frames of a site, which the first unit decides; None from a stepper that does not have it."""
        return next((work.frames(site) for work in self._works if work.unit.index == 0), None)

    def part(self, site: int, *frames: Frames | None) -> Part:
        """Returns what the units have at a site.

        Args:
            site: The site.
            frames: What `frames` gave, of all steppers.
        """
        (known,) = (one for one in frames if one is not None)
        self._frames[site] = known
        tokens = merged([work.tokens(site, known) for work in self._works])
        samples = [work.samples(site) for work in self._works]
        if self._plan.law["source"].kind == "exact":
            return Part(torch.cat([torch.empty(0, self._plan.sites[site].width), *samples]), None, tokens)
        sketch = HistogramSketch.empty(known["source"], Grid(self._plan.precision("source")))
        for one in samples:
            sketch.update(one)
        return Part(None, sketch, tokens)

    def fit(self, treated: str, site: int, *parts: Part) -> SiteMap:
        """Fits a site on what all steppers have there, or takes over the map that it has in the steer to start from.

        The map is written down, and returned.

        Args:
            treated: What names how units are treated.
            site: The site.
            parts: What `part` gave, of all steppers in the order of their units.
        """
        fitted = self._taken(site)
        if fitted is None:
            with machine.threads(1):
                fitted = fit_parts(self._plan, self._laws, site, parts)
        written = site_map(self._plan, treated, site, fitted, self._frames[site])
        self._log.write(written)
        return written

    def finish(self, known: Sequence[SiteMap] = ()) -> tuple[News, list[Receipt]]:
        """Takes the units to the last site, stores them, and returns their receipts, or what was not known of them.

        Args:
            known: The maps that it was not told yet.
        """
        if self._receipts is None:
            if len(self._passes) > self._num_passed:
                last = passes(len(self._plan.sites), self._plan.blocks)[-1][-1]
                news = self.step(tuple(last), known, ends=True)
                if news:
                    return news, []
            self._stack.close()
            self._receipts = self._keep_all()
        return NOTHING, self._receipts

    def close(self) -> None:
        """Ends the forwards, wherever they stand, and lets go of the units."""
        self._stack.close()
        self._works, self._pieces, self._lockstep = [], [], None
        self._pass = -1

    def _keep_all(self) -> list[Receipt]:
        """Stores all units; what they took together is shared out among them."""
        now = time.perf_counter()
        share = (now - self._begun) / max(1, len(self._works))
        return [self._extractor.keep(work.unit, work.ran(share), now - share) for work in self._works]

    def _lay_out(self, treatments: Mapping[Unit, Treatment]) -> None:
        """Lays all units out, of which nothing is read then."""
        self._stack.close()
        self._treatments, self._receipts, self._begun = dict(treatments), None, time.perf_counter()
        self._at, self._pass, self._num_passed, self._lockstep = (), -1, 0, None
        self._frames, self._known = {}, {}
        self._works = [
            UnitWork(self._plan, self._extractor, unit, treatment, self._frames)
            for unit, treatment in self._treatments.items()
        ]
        self._pieces = [(place, *piece) for place, work in enumerate(self._works) for piece in work.laid.pieces]

    def _learn(self, known: Sequence[SiteMap]) -> None:
        """Takes maps and frames that were not known before."""
        for one in known:
            self._known[one.site] = one
            self._frames.setdefault(one.site, frames_of(one))
            if self._plan.blocks is None and self._lockstep is not None:
                self._lockstep.move(one.site, transport_of(one))

    def _begin_pass(self, number: int) -> Lockstep:
        """Makes the forwards of a pass: sites before it move, and in it those that have a map from the start."""
        self._stack.close()
        self._pass, here = number, self._passes[number]
        model = self._extractor.forward.model
        clock = model.clock(self._plan.timesteps)
        turn = self._stack.enter_context(self._spill(model)).turn if self._plan.memory.spills else nullcontext
        self._lockstep = lockstep = Lockstep(
            model.modules,
            self._plan.sites,
            self._plan.spec["pooling"],
            [
                Passage(partial(self._run, *piece, model.alone(clock)), piece[2].spans, moved=True)
                for piece in self._pieces
            ],
            clock,
            sink=lambda site, passage, samples: self._keep(self._pieces[passage], site, samples),
            tokens=lambda site, passage, values: self._count(self._pieces[passage], site, values),
            turn=turn,
        )
        for site, one in self._known.items():
            if site < here.start or self._plan.blocks is None:
                lockstep.move(site, transport_of(one))
        for site in here if self._plan.blocks is not None else ():
            if (taken := self._taken(site)) is not None:
                lockstep.move(site, taken)
        self._stack.enter_context(lockstep.running())
        return lockstep

    def _spill(self, model: AbstractModel) -> Spill:
        """Returns what moves waiting forwards out of memory, to the host's if they are on a GPU, then to a file."""
        on_gpu = self._plan.numerics.device != "cpu"
        host = machine.memory_per_worker("cpu", self._plan.spec["compute"]["workers"]) // 2 if on_gpu else 0
        everything = {"": model.root} if isinstance(model.root, nn.Module) else {}
        everything |= modules_of(model.root)
        return Spill(everything, max(0, self._plan.memory.room), Path(tempfile.gettempdir()), host)

    def _go(self, sites: tuple[int, ...], known: Sequence[SiteMap], *, ends: bool) -> None:
        """Runs all units up to the last of some sites."""
        self._learn(known)
        number = next(number for number, here in enumerate(self._passes) if sites[-1] in here)
        with machine.threads(self._plan.numerics.threads):
            for earlier in range(self._num_passed, number):
                self._begin_pass(earlier).read_last(*self._passes[earlier])
                self._num_passed = earlier + 1
            if self._pass != number or self._lockstep is None:
                self._begin_pass(number)
            assert self._lockstep is not None, "it began"
            found = (self._lockstep.read_last if ends else self._lockstep.read)(*sites)
        for site, samples in zip(sites, found, strict=True):
            if any(one is None for one in samples) and site not in self._frames and self._taken(site) is None:
                raise SiteVisitError(self._plan.sites[site].hookpoint, 0)
        self._at, self._num_passed = sites, number + 1 if ends else self._num_passed

    def _lighter(self, failure: "_NoRoomError") -> News:
        """Says how a unit is to run whose micro-batch has no room: in pieces, or without a prompt."""
        unit = self._works[failure.place].unit
        before = self._treatments[unit]
        after = lighter(before, unit, failure.error)
        lost = tuple(one for one in after.masked if one not in before.masked)
        return News(lost, ((unit, after.splits),) if after.splits != before.splits else ())

    def _run(self, place: int, number: int, piece: MicroBatch, forward: Callable[[MicroBatch], None]) -> None:
        try:
            self._extractor.forward.run_piece(number, piece, forward)
        except BatchMemoryError as exc:
            raise _NoRoomError(place, exc) from exc

    def _keep(self, piece: tuple[int, int, MicroBatch], site: int, samples: torch.Tensor) -> None:
        if site not in self._passes[self._pass]:
            return
        reading = self._works[piece[0]].laid.reading
        reading.turn_to(piece[2])
        reading.keep(site, samples)

    def _count(self, piece: tuple[int, int, MicroBatch], site: int, values: torch.Tensor) -> None:
        reading = self._works[piece[0]].laid.reading
        if reading.count is not None and site in self._passes[self._pass]:
            reading.turn_to(piece[2])
            reading.count(site, values)
