"""The drive of a sequential fit: from site to site, however many steppers there are, and whatever becomes of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import final

from act.sequential import passes
from pipeline.errors import LossError
from pipeline.frames import joined, write_frame
from pipeline.ledger import Ledger
from pipeline.quarantine import RunRecords
from pipeline.sequential.site_maps import SiteMaps, frames_of, masked_name
from pipeline.sequential.stepper import Stepper
from pipeline.storage import AbstractStorage
from schemas.plan import LawName, Plan, Unit
from schemas.receipt import Quarantined, Receipt
from schemas.site_map import SiteMap
from schemas.treatment import Treatment


class OddPrompts(Exception):
    """Prompts turned out to have activations that are not finite: the fit begins anew without them."""

    def __init__(self, lost: Sequence[Quarantined]) -> None:
        super().__init__(lost)
        self.lost = tuple(lost)


class AbstractSteppers(ABC):
    """Whoever takes the units of the source through the model, in lockstep."""

    @abstractmethod
    def begin(self, treatments: Mapping[Unit, Treatment], known: Sequence[SiteMap]) -> None:
        """Shares the units out, and begins from the first site, through those whose maps are known."""

    @abstractmethod
    def fit(self, masked: str, sites: tuple[int, ...]) -> list[SiteMap]:
        """Fits sites that all units come to next, together, and returns their maps, which are written down by then.

        Raises:
            OddPrompts: Some prompts have an activation there that is not finite.
        """

    @abstractmethod
    def finish(self) -> Iterator[Receipt]:
        """Takes all units to the last site, stores them, and yields their receipts."""


@final
class SequentialFit:
    """The source side of a run whose sites are fitted one after the other. The target's units are all done.

    Args:
        storage: Where the run lies.
        plan: The plan.
        steppers: Whoever steps.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan, steppers: AbstractSteppers) -> None:
        self._storage, self._plan, self._steppers = storage, plan, steppers
        self._log, self._ledger = SiteMaps(storage, plan), Ledger(storage, plan)

    def known(self) -> list[SiteMap]:
        """Returns the maps that are written down already, of whole groups of sites."""
        written = self._log.known(masked_name(self._masked()))
        stops = [group.stop for groups in self._passes for group in groups if group.stop <= len(written)]
        return written[: max(stops, default=0)]

    def run(self, on_site: Callable[[], None] = lambda: None) -> Iterator[Receipt]:
        """Fits the sites that are missing, and yields the receipts of the units that are.

        Args:
            on_site: Called after each site.

        Raises:
            LossError: More prompts are lost than the plan allows.
        """
        while True:
            try:
                self._fit(on_site)
            except OddPrompts as odd:
                self._remember(odd.lost)
            else:
                break
        self._write_frames(self.known())
        yield from self._steppers.finish()

    def _fit(self, on_site: Callable[[], None]) -> None:
        """Fits what is missing; in the end the steppers have what is to be stored."""
        masked, known = self._masked(), self.known()
        name = masked_name(masked)
        for groups in self._passes:
            missing = [group for group in groups if group.stop > len(known)]
            if missing:
                self._steppers.begin({unit: Treatment(masked=lost) for unit, lost in masked}, known)
            for group in missing:
                known += self._steppers.fit(name, tuple(group))
                for _ in group:
                    on_site()
        if not missing:
            undone = set(self._ledger.missing())
            self._steppers.begin({unit: Treatment(masked=lost) for unit, lost in masked if unit in undone}, known)

    @property
    def _passes(self) -> list[list[range]]:
        return passes(len(self._plan.sites), self._plan.blocks)

    def _masked(self) -> list[tuple[Unit, tuple[Quarantined, ...]]]:
        """Returns the units of the source, each with its prompts that are known to be lost."""
        records = RunRecords(self._storage, self._plan)
        return [(unit, records.known(unit)) for unit in self._plan.units() if unit.side == "source"]

    def _remember(self, lost: Sequence[Quarantined]) -> None:
        """Writes down prompts that do not count.

        Raises:
            LossError: They are more than the plan allows.
        """
        records = RunRecords(self._storage, self._plan)
        for unit, before in self._masked():
            here = tuple(one for one in lost if unit.start <= one.row < unit.stop)
            if here:
                records.remember(unit, (*before, *here))
        total = [one for _, known in self._masked() for one in known]
        allowed = int(self._plan.spec["failures"]["quarantine_at_most"] * self._plan.num_prompts)
        if len(total) > allowed:
            raise LossError(len(total), allowed, [f"source row {one.row} ({one.reason})" for one in total[:3]])

    def _write_frames(self, known: Sequence[SiteMap]) -> None:
        """Writes the frames of all sites where those of a run that is fitted simultaneously lie."""
        frames = [frames_of(one) for one in known]
        laws: list[LawName] = ["source", "tokens"]
        for law in laws:
            if law in frames[0]:
                write_frame(self._storage, self._plan, law, joined(frame[law] for frame in frames))


@final
class InProcessSteppers(AbstractSteppers):
    """One stepper, in this process.

    Args:
        stepper: The stepper.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper, self._known = stepper, list[SiteMap]()

    def begin(self, treatments: Mapping[Unit, Treatment], known: Sequence[SiteMap]) -> None:
        """Begins with all units."""
        self._known = []
        self._stepper.begin(treatments, known)

    def fit(self, masked: str, sites: tuple[int, ...]) -> list[SiteMap]:
        """Fits sites."""
        lost = self._stepper.step(sites, self._known)
        if lost:
            raise OddPrompts(lost)
        parts = {site: self._stepper.part(site, self._stepper.frames(site)) for site in sites}
        self._known = [self._stepper.fit(masked, site, part) for site, part in parts.items()]
        return self._known

    def finish(self) -> Iterator[Receipt]:
        """Stores all units."""
        yield from self._stepper.finish(self._known)
