"""Laying a run out: all that it needs besides its plan, before its first unit."""

import hashlib

from pipeline.errors import DamagedRunError
from pipeline.folder import SPEC, SPEC_CHECKSUM, RunFolder
from pipeline.former import copy_former
from pipeline.ledger import REPAIR
from pipeline.plan import earlier_prompts
from pipeline.prompts import Snapshot, write_snapshot
from pipeline.storage import AbstractStorage
from pipeline.store import ActivationStore, SketchStore
from schemas.job import Job
from schemas.plan import SIDES, Plan


def lay_out(storage: AbstractStorage, plan: Plan, located: Job, spec: bytes) -> None:
    """Writes what a run needs besides its plan: the spec as it was given, each side's prompts by unit, its stores.

    Args:
        storage: Where the run lies.
        plan: Its plan.
        located: The job, with absolute paths.
        spec: The file that it was read from.

    Raises:
        InputError: The prompts cannot be read.
        DamagedRunError: The input changed since it was planned, or what an earlier start wrote is damaged.
        StoreError: The storage refuses.
    """
    for array in (*ActivationStore(storage, plan).arrays, *SketchStore(storage, plan).arrays):
        array.create()
    _write_with_checksum(storage, SPEC, SPEC_CHECKSUM, spec)
    copy_former(storage, plan, located)
    folder = RunFolder(storage)
    for name in SIDES:
        key, wanted = folder.prompts(name), plan.side(name)
        if not Snapshot.exists(storage, key):
            side = located.source if name == "source" else located.target
            write_snapshot(side, storage, key, plan.unit_size, earlier_prompts(located, name))
        if Snapshot.open(storage, key).facts != wanted:
            problem = "its prompts are not those of the plan; the input changed while it was read"
            raise DamagedRunError(storage.place(key), problem, REPAIR)


def checksum_line(data: bytes, name: str) -> bytes:
    """Returns what ``sha256sum`` says of a file."""
    return f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode()


def _write_with_checksum(storage: AbstractStorage, key: str, checksum_key: str, data: bytes) -> None:
    for place, wanted in ((checksum_key, checksum_line(data, key)), (key, data)):
        if not storage.exists(place) or storage.read(place) != wanted:
            storage.write(place, wanted)
