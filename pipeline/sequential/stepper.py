"""A stepper: some units of the source that go through the model together, from site to site."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import nn

from act.hookpoint import modules_of
from act.lockstep import Lockstep, Passage
from act.lockstep.spill import Spill
from pipeline import machine
from pipeline.errors import BatchMemoryError
from pipeline.extract import Extractor, lighter
from pipeline.laws import Laws
from pipeline.models import AbstractModel, MicroBatch
from pipeline.sequential.part import Part, fit_parts, merged
from pipeline.sequential.site_maps import SiteMaps, frames_of, site_map, transport_of
from pipeline.sequential.unit_work import Frames, UnitWork
from pipeline.sketch import Grid, HistogramSketch
from pipeline.storage import storage_at
from schemas.plan import Plan, Unit
from schemas.receipt import Quarantined, Receipt
from schemas.site_map import SiteMap
from schemas.treatment import Treatment


@final
class Stepper:
    """Takes units of the source through the model in lockstep, and stores them once all sites are behind them.

    A plain class: only `pipeline.cluster` makes it an actor. `begin` starts from the first site, through those whose
    maps are known; after it every call may be repeated.

    Args:
        plan: The plan.
        uri: Where the run lies.
        extractor: Has the model; None makes one.
    """

    def __init__(self, plan: Plan, uri: str, extractor: Extractor | None = None) -> None:
        storage = storage_at(uri)
        self._plan, self._extractor = plan, extractor or Extractor(plan, uri)
        self._log, self._laws = SiteMaps(storage, plan), Laws(storage, plan)
        self._treatments: dict[Unit, Treatment] = {}
        self._works: list[UnitWork] = []
        self._frames: dict[int, Frames] = {}
        self._lockstep: Lockstep | None = None
        self._stack = ExitStack()
        self._at: tuple[int, ...] = ()
        self._running = 0
        self._known: dict[int, SiteMap] = {}

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
        self._treatments = {unit: self._extractor.as_before(unit, one) for unit, one in treatments.items()}
        self._start(known)

    def step(self, sites: tuple[int, ...], known: Sequence[SiteMap] = ()) -> tuple[Quarantined, ...]:
        """Takes all units up to some sites.

        Args:
            sites: Sites that are fitted together, in order.
            known: The maps of sites before them that it was not told yet.

        Returns:
            The prompts that have an activation there which is not finite.
        """
        if sites != self._at:
            self._go(sites, known)
        return tuple(lost for work in self._works for site in sites for lost in work.odd(site))

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

    def fit(self, masked: str, site: int, *parts: Part) -> SiteMap:
        """Fits a site on what all steppers have there, writes its map down, and returns it.

        Args:
            masked: What names the prompts that do not count.
            site: The site.
            parts: What `part` gave, of all steppers in the order of their units.
        """
        with machine.threads(1):
            fitted = fit_parts(self._plan, self._laws, site, parts)
        written = site_map(self._plan, masked, site, fitted, self._frames[site])
        self._log.write(written)
        return written

    def finish(self, known: Sequence[SiteMap] = ()) -> list[Receipt]:
        """Takes the units to the last site, stores them, and returns their receipts.

        Args:
            known: The maps that it was not told yet.
        """
        last = len(self._plan.sites) - 1
        if last not in self._at:
            self._go((last,), known)
        self._stack.close()
        receipts = [self._extractor.keep(work.unit, work.ran(), work.begin) for work in self._works]
        self._works = []
        return receipts

    def _start(self, known: Sequence[SiteMap]) -> None:
        """Lays all units out, and makes their forwards."""
        self._stack.close()
        self._at, self._frames = (), {one.site: frames_of(one) for one in known}
        self._works = [
            UnitWork(self._plan, self._extractor, unit, treatment, self._frames)
            for unit, treatment in self._treatments.items()
        ]
        pieces = [(place, *piece) for place, work in enumerate(self._works) for piece in work.laid.pieces]
        model = self._extractor.forward.model
        clock = model.clock(self._plan.timesteps)
        turn = self._stack.enter_context(self._spill(model)).turn if self._plan.memory.spills else nullcontext
        lockstep = Lockstep(
            model.modules,
            self._plan.sites,
            self._plan.spec["pooling"],
            [Passage(partial(self._run, *piece, model.alone(clock)), piece[2].spans, moved=True) for piece in pieces],
            clock,
            sink=lambda site, passage, samples: self._keep(pieces[passage], site, samples),
            tokens=lambda site, passage, values: self._count(pieces[passage], site, values),
            turn=turn,
        )
        self._known = {one.site: one for one in known}
        for one in known:
            lockstep.move(one.site, transport_of(one))
        self._stack.enter_context(lockstep.running())
        self._lockstep = lockstep

    def _spill(self, model: AbstractModel) -> Spill:
        """Returns what moves waiting forwards out of memory, to the host's if they are on a GPU, then to a file."""
        on_gpu = self._plan.numerics.device != "cpu"
        host = machine.memory_per_worker("cpu", self._plan.spec["compute"]["workers"]) // 2 if on_gpu else 0
        everything = {"": model.root} if isinstance(model.root, nn.Module) else {}
        everything |= modules_of(model.root)
        return Spill(everything, max(0, self._plan.memory.room), Path(tempfile.gettempdir()), host)

    def _go(self, sites: tuple[int, ...], known: Sequence[SiteMap]) -> None:
        """Runs all units up to the last of some sites; from the start, in smaller pieces, while one does not fit."""
        while True:
            assert self._lockstep is not None, "it began"
            for one in known:
                self._lockstep.move(one.site, transport_of(one))
            self._known |= {one.site: one for one in known}
            last = sites[-1] == len(self._plan.sites) - 1
            try:
                with machine.threads(self._plan.numerics.threads):
                    (self._lockstep.read_last if last else self._lockstep.read)(*sites)
            except BatchMemoryError as exc:
                unit = self._works[self._running].unit
                self._treatments[unit] = lighter(self._treatments[unit], unit, exc)
                self._start(list(self._known.values()))
                known = ()
            else:
                self._at = sites
                return

    def _run(self, place: int, number: int, piece: MicroBatch, forward: Callable[[MicroBatch], None]) -> None:
        self._running = place
        self._extractor.forward.run_piece(number, piece, forward)

    def _keep(self, piece: tuple[int, int, MicroBatch], site: int, samples: torch.Tensor) -> None:
        reading = self._works[piece[0]].laid.reading
        reading.turn_to(piece[2])
        reading.keep(site, samples)

    def _count(self, piece: tuple[int, int, MicroBatch], site: int, values: torch.Tensor) -> None:
        reading = self._works[piece[0]].laid.reading
        if reading.count is not None:
            reading.turn_to(piece[2])
            reading.count(site, values)
