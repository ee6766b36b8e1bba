"""The log of a sequential fit: the map of each site, written before anybody goes on with it."""

from collections.abc import Mapping
from typing import final

import torch
from safetensors.torch import load, save

from act.transport import AbstractMap, map_from_tensors
from pipeline.errors import DamagedRunError
from pipeline.extract import EMPTY
from pipeline.folder import SEQUENTIAL
from pipeline.ledger import REPAIR
from pipeline.sketch import Frame
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.plan import LAWS, LawName, Plan, Unit
from schemas.record import digest
from schemas.site_map import SiteMap
from schemas.treatment import Treatment


@final
class SiteMaps:
    """The maps that are written down in a run.

    Args:
        storage: Where the run lies.
        plan: Its plan.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan

    def known(self, treated: str) -> list[SiteMap]:
        """Returns the maps of the sites from the first on, up to the first that is not there.

        Args:
            treated: What names how units are treated: maps that were fitted otherwise are passed by.

        Raises:
            DamagedRunError: One cannot be read.
        """
        found: list[SiteMap] = []
        for site in range(len(self._plan.sites)):
            one = self._find(site)
            if one is None or one.treated != treated:
                break
            found.append(one)
        return found

    def write(self, one: SiteMap) -> None:
        """Writes a map down.

        Raises:
            StoreError: The storage refuses.
        """
        self._storage.write(self.key(one.site), record.seal(one))

    @staticmethod
    def key(site: int) -> str:
        """Where the map of a site lies."""
        return f"{SEQUENTIAL}/{site:08d}.json"

    def _find(self, site: int) -> SiteMap | None:
        key = self.key(site)
        try:
            one = record.unseal(SiteMap, self._storage.read(key))
        except FileNotFoundError:
            return None
        except record.RecordError as exc:
            raise DamagedRunError(self._storage.place(key), str(exc), REPAIR) from exc
        if (one.plan, one.site) != (self._plan.fingerprint, site):
            raise DamagedRunError(self._storage.place(key), "it is not of this plan", REPAIR)
        return one


def site_map(plan: Plan, treated: str, site: int, transport: AbstractMap, frames: Mapping[LawName, Frame]) -> SiteMap:
    """Returns what is written down of a site."""
    written: dict[str, bytes] = {law: save(frame.to_tensors()) for law, frame in frames.items()}
    tensors = {name: part.contiguous() for name, part in transport.tensors().items()}
    return SiteMap(plan.fingerprint, treated, site, save(tensors), written)


def transport_of(one: SiteMap) -> AbstractMap:
    """Returns the map that was written down."""
    return map_from_tensors(load(one.tensors))


def frames_of(one: SiteMap) -> dict[LawName, Frame]:
    """Returns the frames that were written down."""
    return {law: Frame.from_tensors(load(one.frames[law])) for law in LAWS if law in one.frames}


def treatment_key(treatments: Mapping[Unit, Treatment]) -> str:
    """Returns what names how units are treated: SHA-256 over prompts that do not count, and micro-batches in pieces.

    A prompt without tokens counts nowhere, known to be lost or not.
    """
    return digest(
        {
            str(unit): [sorted(one.row for one in how.masked if one.reason != EMPTY), list(map(vars, how.splits))]
            for unit, how in treatments.items()
            if how.splits or any(one.reason != EMPTY for one in how.masked)
        }
    )


def same_map(one: AbstractMap, other: AbstractMap) -> bool:
    """Returns whether two maps have the same bits."""
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(part, theirs[name]) for name, part in ours.items())
