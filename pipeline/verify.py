"""Verification: every byte of a run against what was written, and every prompt against what became of it.

A driver may be at work meanwhile: receipts are read before the files that they speak of, and what looks wrong is looked
at again before it is named.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import final

from act.steer import CARD, TENSORS
from pipeline.folder import (
    ACTIVATIONS,
    CRUMBS,
    CURRENT,
    FORMER,
    INPUTS,
    LEASE,
    PLAN,
    REPORT,
    REPORT_CHECKSUM,
    RUNNING,
    SEQUENTIAL,
    SKETCHES,
    SPEC,
    SPEC_CHECKSUM,
    STEER,
    STEERS,
    TIMINGS,
)
from pipeline.pieces import SPLITS
from pipeline.quarantine import QUARANTINE
from pipeline.storage import AbstractStorage, LocalStorage
from pipeline.storage.interface import TEMPORARY
from pipeline.verification.arrays import FRAMES, PROMPTS, Arrays, Prompts
from pipeline.verification.damage import Damage, Kind, Seen
from pipeline.verification.folds import FOLDS, MergedUnits
from pipeline.verification.look import Look, said, unknown
from pipeline.verification.notes import Notes, Texts
from pipeline.verification.steers import FILES, SteerFiles, Steers
from pipeline.verification.units import RECEIPTS, Units
from schemas.plan import Plan

__all__ = ["Damage", "Kind", "Seen", "is_run", "is_steer", "verify", "verify_steer"]

#: What there is only once a run is laid out.
_LATER = frozenset({FRAMES, RECEIPTS, FOLDS, RUNNING, STEERS, CURRENT})

_KNOWN = _LATER | {
    *(PLAN, SPEC, SPEC_CHECKSUM, REPORT, REPORT_CHECKSUM, TIMINGS, INPUTS, STEER, LEASE),
    *(ACTIVATIONS, SKETCHES, CRUMBS, QUARANTINE, SPLITS, SEQUENTIAL, PROMPTS, FORMER),
}

Section = tuple[str, Kind, Callable[[], Iterator[Damage]]]


def is_run(storage: AbstractStorage) -> bool:
    """Returns whether a place holds a run, if only what is left of one."""
    return not {PLAN, SPEC_CHECKSUM, PROMPTS, *_LATER}.isdisjoint(storage.names())


def is_steer(storage: AbstractStorage) -> bool:
    """Returns whether a place holds a steer by itself, if only what is left of one."""
    return not is_run(storage) and not {CARD, TENSORS}.isdisjoint(storage.names())


def verify(storage: AbstractStorage, seen: Seen | None = None, plan: Plan | None = None) -> Iterator[Damage]:
    """Yields what is wrong with a run, and what lies in it that is no part of it. Memory holds a unit at a time.

    Args:
        storage: Where the run lies.
        seen: Counts what was looked at.
        plan: Its plan, by which all else is looked at if the one that lies there is damaged; None to stop then.
    """
    look, found = Look(storage, seen or Seen()), [plan]

    def read_plan() -> None:
        found[:] = [look.sealed(Plan, PLAN)]

    problem = look.problem(PLAN, read_plan)
    if problem is not None:
        yield Damage(PLAN, problem, None, "plan")
    if found[0] is not None:
        yield from _Run(look, found[0]).damages()


def verify_steer(folder: Path, seen: Seen | None = None) -> Iterator[Damage]:
    """Yields what is wrong with a steer by itself, and what lies beside it.

    Args:
        folder: A folder, or a link to one.
        seen: Counts what was looked at.
    """
    storage = LocalStorage(folder)
    yield from SteerFiles(Look(storage, seen or Seen()), "").damages()
    yield from unknown(key for key in storage.keys("") if key not in FILES)


@final
class _Run:
    """A run, as it is looked at once."""

    def __init__(self, look: Look, plan: Plan) -> None:
        self._look, self._storage = look, look.storage
        self._laid_out = not _LATER.isdisjoint(look.storage.names())
        self._lacking = "there is a steer" if look.storage.exists(CURRENT) else None
        self._texts, self._notes = Texts(look), Notes(look, plan)
        self._prompts, self._arrays, self._folds = Prompts(look, plan), Arrays(look, plan), MergedUnits(look, plan)
        self._units = Units(look, plan, self._prompts.snapshots, self._folds)
        self._steers = Steers(look, plan, self._units.tally)

    def damages(self) -> Iterator[Damage]:
        """Yields what is wrong, part by part; a part that cannot be gone through is wrong as a whole."""
        parts: list[Section] = [
            (SPEC, "spec", partial(self._texts.damages, laid_out=self._laid_out)),
            (FORMER, "former", partial(self._steers.former, wanted=self._laid_out)),
            (PROMPTS, "prompts", partial(self._prompts.damages, wanted=self._laid_out)),
            (FOLDS, "fold", self._folds.damages),
            (RECEIPTS, "receipt", partial(self._units.damages, self._lacking)),
            (FRAMES, "frame", lambda: self._arrays.frames(self._units.sketched)),
            (ACTIVATIONS, "layout", partial(self._arrays.layouts, wanted=self._laid_out)),
            (FOLDS, "fold", self._folds.compared),
            (RUNNING, "note", self._notes.damages),
            (STEERS, "steer", self._steers.damages),
            (LEASE, "unknown", self._strangers),
        ]
        for key, kind, part in parts:
            try:
                yield from part()
            except Exception as exc:  # noqa: BLE001 - a folder that cannot be listed must not hide what is wrong elsewhere
                yield Damage(key, said(exc), None, kind)

    def _strangers(self) -> Iterator[Damage]:
        for name in self._storage.names():
            if name not in _KNOWN:
                yield from unknown(self._storage.keys(name) or [name])
        if isinstance(self._storage, LocalStorage):
            for _, folders, names in os.walk(self._storage.root):
                found = sum(TEMPORARY.fullmatch(name) is not None for name in [*folders, *names])
                self._look.seen.temporaries += found
