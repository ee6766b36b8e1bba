"""What a run has beside its laws: texts with a checksum, and records that it can do without."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

from pipeline.folder import (
    CRUMBS,
    INPUTS,
    LEASE,
    REPORT,
    REPORT_CHECKSUM,
    RUNNING,
    SEQUENTIAL,
    SPEC,
    SPEC_CHECKSUM,
    TIMINGS,
)
from pipeline.inputs import Inputs
from pipeline.layout import checksum_line
from pipeline.lease import LeaseRecord
from pipeline.pieces import SPLITS, UnitSplits
from pipeline.quarantine import QUARANTINE, Culprits
from pipeline.verification.damage import Damage, Kind
from pipeline.verification.look import MISSING, OTHER_BYTES, Look, Wrong, unknown
from schemas.plan import Plan, SideName, Unit
from schemas.running import Running
from schemas.site_map import SiteMap
from schemas.timings import Timings
from schemas.treatment import Crumb

_APART = "it and its checksum do not belong together"


@final
class Texts:
    """The spec and the report, each with its checksum in a file beside it.

    Args:
        look: How files are looked at.
    """

    def __init__(self, look: Look) -> None:
        self._look, self._storage = look, look.storage

    def damages(self, *, laid_out: bool) -> Iterator[Damage]:
        """Yields what is wrong.

        Args:
            laid_out: Whether the spec has to be there; its checksum is written first.
        """
        if laid_out or self._storage.exists(SPEC):
            yield from self._pair(SPEC, SPEC_CHECKSUM, "spec")
        if self._storage.exists(REPORT) or self._storage.exists(REPORT_CHECKSUM):
            yield from self._pair(REPORT, REPORT_CHECKSUM, "report")

    def _pair(self, key: str, checksum: str, kind: Kind) -> Iterator[Damage]:
        problem = self._look.problem(checksum, partial(self._form, key, checksum))
        if problem is not None:
            self._look.count(key)
            yield Damage(checksum, problem, None, kind)
            return
        problem = self._look.problem(key, partial(self._compare, key, checksum))
        if problem is not None:
            yield Damage(key, problem, None, kind)
        if problem == _APART:
            yield Damage(checksum, problem, None, kind)  # for either may be the one that changed

    def _form(self, key: str, checksum: str) -> None:
        """Checks that a checksum is one: 64 digits and the name of its file."""
        if not re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(key)}\n".encode(), self._look.small(checksum)):
            raise Wrong("it is no checksum as it was written")

    def _compare(self, key: str, checksum: str) -> None:
        if checksum_line(self._look.small(key), key) != self._look.small(checksum):
            raise Wrong(_APART)


@final
class Notes:
    """Records that a run can do without.

    Args:
        look: How files are looked at.
        plan: The plan.
    """

    def __init__(self, look: Look, plan: Plan) -> None:
        self._look, self._plan, self._storage = look, plan, look.storage

    def damages(self) -> Iterator[Damage]:
        """Yields what is wrong."""
        names, texts = self._storage.names(), {TIMINGS: Timings, INPUTS: Inputs}
        for key in texts.keys() & names:
            yield from self._one(key, None, partial(self._look.sealed, texts[key], key))
        for folder, kind in ((QUARANTINE, Culprits), (SPLITS, UnitSplits), (CRUMBS, Crumb)):
            for key in self._storage.keys(folder):
                unit = self._unit(key)
                if unit is None:
                    yield from _strange(key)
                else:
                    yield from self._one(key, unit, partial(self._of_unit, kind, key, unit))
        for key in self._storage.keys(RUNNING):
            if re.fullmatch(rf"{RUNNING}/[0-9]{{5}}\.json", key):
                yield from self._one(key, None, partial(self._running, key))
            else:
                yield from _strange(key)

        yield from self._site_maps()
        for key in self._storage.keys(LEASE):
            match = re.fullmatch(rf"{LEASE}/([0-9]{{8,18}})\.(json|beat|released)", key)
            if match is None:
                yield from _strange(key)
            else:
                yield from self._one(key, None, partial(self._lease, key, int(match[1]), match[2]))

    def _site_maps(self) -> Iterator[Damage]:
        for key in self._storage.keys(SEQUENTIAL):
            match = re.fullmatch(rf"{SEQUENTIAL}/([0-9]{{8}})\.json", key)
            if match is None or not self._plan.sequential or int(match[1]) >= len(self._plan.sites):
                yield from _strange(key)
            else:
                yield from self._one(key, None, partial(self._site_map, key, int(match[1])))

    def _site_map(self, key: str, site: int) -> None:
        found = self._look.sealed(SiteMap, key)
        if (found.plan, found.site) != (self._plan.fingerprint, site):
            raise Wrong("it is not of this plan")

    def _one(self, key: str, unit: Unit | None, look: Callable[[], object]) -> Iterator[Damage]:
        problem = self._look.problem(key, look)
        if problem is not None and problem != MISSING:  # a driver that is at work deletes some
            yield Damage(key, problem, unit, "note")

    def _unit(self, key: str) -> Unit | None:
        """Returns the unit that a file is named after: ``FOLDER/source/00000003.json``."""
        match = re.fullmatch(r"[a-z]+/(source|target)/([0-9]{8})\.json", key)
        if match is None:
            return None
        side: SideName = "source" if match[1] == "source" else "target"
        return self._plan.unit(side, int(match[2])) if int(match[2]) < self._plan.num_units(side) else None

    def _of_unit(self, kind: type[Culprits | UnitSplits | Crumb], key: str, unit: Unit) -> None:
        found = self._look.sealed(kind, key)
        if (found.side, found.unit) != (unit.side, unit.index):
            raise Wrong(f"it is not that of {unit}")
        prompts = found.prompts if isinstance(found, Culprits) else ()
        if not all(unit.start <= one.row < unit.stop for one in prompts):
            raise Wrong("it names a prompt of another unit")

    def _lease(self, key: str, epoch: int, kind: str) -> None:
        """Checks a lease; a heartbeat is a bare number, so that another number passes. It says nothing of the run."""
        if kind == "json":
            if self._look.sealed(LeaseRecord, key).epoch != epoch:
                raise Wrong("it is another lease's")
        elif not re.fullmatch(rb"[0-9]{1,18}" if kind == "beat" else rb"", self._look.small(key)):
            raise Wrong(OTHER_BYTES)

    def _running(self, key: str) -> None:
        if self._look.sealed(Running, key).plan != self._plan.fingerprint:
            raise Wrong("it is of another plan")


def _strange(key: str) -> Iterator[Damage]:
    """Yields a file that is no record: no part of the run, or in a folder where a record belongs."""
    match = re.match(r"(.+?\.json)/", key)
    if match is None:
        yield from unknown([key])
    else:
        yield Damage(match[1], "it is a folder", None, "note")
