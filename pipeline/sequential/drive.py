"""The drive of a sequential fit: from site to site, however many steppers there are, and whatever becomes of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import final

from act.sequential import passes
from act.steer import Steer
from pipeline.errors import DamagedRunError, LossError
from pipeline.frames import joined, write_frame
from pipeline.ledger import REPAIR, Ledger
from pipeline.pieces import Pieces
from pipeline.quarantine import RunRecords
from pipeline.sequential.site_maps import SiteMaps, frames_of, same_map, transport_of, treatment_key
from pipeline.sequential.stepper import News, Stepper
from pipeline.storage import AbstractStorage
from schemas.plan import LawName, Plan, Unit
from schemas.receipt import Receipt
from schemas.site_map import SiteMap
from schemas.treatment import Treatment


class BeginAnew(Exception):
    """Something turned out about units on their way, with which the fit begins anew."""

    def __init__(self, news: Sequence[News]) -> None:
        super().__init__(news)
        self.news = tuple(news)


class AbstractSteppers(ABC):
    """Whoever takes the units of the source through the model, in lockstep."""

    @abstractmethod
    def begin(self, treatments: Mapping[Unit, Treatment], known: Sequence[SiteMap]) -> None:
        """Shares the units out, and begins from the first site, through those whose maps are known."""

    @abstractmethod
    def fit(self, treated: str, sites: tuple[int, ...], *, ends: bool) -> list[SiteMap]:
        """Fits sites that all units come to next, together, and returns their maps, which are written down by then.

        Args:
            treated: What names how the units are treated.
            sites: The sites, in order.
            ends: Whether nothing is asked of what lies behind them.

        Raises:
            BeginAnew: Something turned out about the units.
        """

    @abstractmethod
    def finish(self) -> Iterator[Receipt]:
        """Takes all units to the last site, stores them, and yields their receipts.

        Raises:
            BeginAnew: Something turned out about the units.
        """


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
        self._ledger = Ledger(storage, plan)

    def known(self) -> list[SiteMap]:
        """Returns the maps that are written down already, of whole groups of sites."""
        return known_maps(self._storage, self._plan)

    def run(self, on_site: Callable[[], None] = lambda: None) -> Iterator[Receipt]:
        """Fits the sites that are missing, and yields the receipts of the units that are.

        Args:
            on_site: Called after each site.

        Raises:
            LossError: More prompts are lost than the plan allows.
        """
        missing, receipts = set(self._ledger.missing()), None
        while receipts is None:
            try:
                self._fit(missing, on_site)
                self._write_frames(self.known())
                receipts = list(self._steppers.finish())
            except BeginAnew as exc:
                self._remember(exc.news)
        yield from (receipt for receipt in receipts if receipt.of(self._plan.unit_size) in missing)

    def _fit(self, missing: Collection[Unit], on_site: Callable[[], None]) -> None:
        """Fits what is missing; in the end the steppers have what is to be stored."""
        treatments, known = treatments_of(self._storage, self._plan), self.known()
        if len(known) == len(self._plan.sites):
            self._steppers.begin({unit: how for unit, how in treatments.items() if unit in missing}, known)
        for groups in passes(len(self._plan.sites), self._plan.blocks):
            todo = [group for group in groups if group.stop > len(known)]
            if todo:
                self._steppers.begin(treatments, known)
            for group in todo:
                known += self._steppers.fit(treatment_key(treatments), tuple(group), ends=group is groups[-1])
                for _ in group:
                    on_site()

    def _remember(self, news: Sequence[News]) -> None:
        """Writes down what turned out.

        Raises:
            LossError: More prompts are lost than the plan allows.
        """
        records, pieces = RunRecords(self._storage, self._plan), Pieces(self._storage)
        for unit, before in treatments_of(self._storage, self._plan).items():
            here = [one for part in news for one in part.lost if unit.start <= one.row < unit.stop]
            if here:
                records.remember(unit, (*before.masked, *here))
        for unit, splits in (one for part in news for one in part.splits):
            pieces.remember(unit, splits)
        lost = [one for how in treatments_of(self._storage, self._plan).values() for one in how.masked]
        allowed = self._plan.most_lost
        if len(lost) > allowed:
            raise LossError(len(lost), allowed, [f"source row {one.row} ({one.reason})" for one in lost[:3]])

    def _write_frames(self, known: Sequence[SiteMap]) -> None:
        """Writes the frames of all sites where those of a run that is fitted simultaneously lie."""
        frames = [frames_of(one) for one in known]
        laws: list[LawName] = ["source", "tokens"]
        for law in laws:
            if law in frames[0]:
                write_frame(self._storage, self._plan, law, joined(frame[law] for frame in frames))


def known_maps(storage: AbstractStorage, plan: Plan) -> list[SiteMap]:
    """Returns the maps of a run that are written down, of whole groups of sites."""
    written = SiteMaps(storage, plan).known(treatment_key(treatments_of(storage, plan)))
    groups = (group for groups in passes(len(plan.sites), plan.blocks) for group in groups)
    return written[: max((group.stop for group in groups if group.stop <= len(written)), default=0)]


def check_maps(storage: AbstractStorage, plan: Plan, steer: Steer) -> None:
    """Checks that the maps of a steer, made of what is stored, are those that moved the source.

    Raises:
        DamagedRunError: One is not.
    """
    for one in known_maps(storage, plan):
        site = plan.sites[one.site].hookpoint
        if not same_map(transport_of(one), steer.maps[site]):
            problem = f"the map of {site} is not that of the laws that are stored"
            raise DamagedRunError(storage.place(SiteMaps.key(one.site)), problem, REPAIR)


def treatments_of(storage: AbstractStorage, plan: Plan) -> dict[Unit, Treatment]:
    """Returns the units of a run's source, and what is known of each."""
    records, pieces = RunRecords(storage, plan), Pieces(storage)
    units = (unit for unit in plan.units() if unit.side == "source")
    return {unit: Treatment(masked=records.known(unit), splits=pieces.known(unit)) for unit in units}


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

    def fit(self, treated: str, sites: tuple[int, ...], *, ends: bool) -> list[SiteMap]:
        """Fits sites."""
        news = self._stepper.step(sites, self._known, ends=ends)
        if news:
            raise BeginAnew([news])
        parts = {site: self._stepper.part(site, self._stepper.frames(site)) for site in sites}
        self._known = [self._stepper.fit(treated, site, part) for site, part in parts.items()]
        return self._known

    def finish(self) -> Iterator[Receipt]:
        """Stores all units."""
        news, receipts = self._stepper.finish(self._known)
        if news:
            raise BeginAnew([news])
        yield from receipts
