"""The catalogue of laws: sides as values, each under the hash of all that decides it.

An entry is a run of one side without its prompts, which the hash stands for: its plan, its receipts, its frames and
folds, and the few files that folds do not have. The file `ENTRY` is written last: an entry exists when it does.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from pipeline.errors import DamagedRunError
from pipeline.folder import PLAN, RunFolder
from pipeline.folds import Folds, contents_of
from pipeline.ledger import Ledger
from pipeline.reuse import Found
from pipeline.storage import AbstractStorage, storage_at
from schemas import record
from schemas.fold import UnitSet
from schemas.job import Job
from schemas.plan import LAWS, LawName, Plan, SideName, side_of

ENTRY = "side.json"


@final
@dataclass(frozen=True)
class Entry:
    """What an entry is.

    Args:
        key: The hash that names it.
        side: Which side of its plan.
        plan: Fingerprint of the plan, which names the folder that the entry is in: several runs may add it at once,
            each its own, of which the first counts.
    """

    key: str
    side: SideName
    plan: str


def hits(located: Job, plan: Plan, wanted: Collection[SideName]) -> dict[SideName, Found]:
    """Returns the entries of a job's catalogue that have the sides which are wanted.

    Raises:
        DamagedRunError: An entry is not as it was written.
    """
    found: dict[SideName, Found] = {}
    for side in sorted(wanted):
        storage = _place(located, plan, side)
        if storage is not None and storage.exists(ENTRY):
            found[side] = _read(storage, plan.side_key(side))
    return found


def forget(located: Job, plan: Plan, side: SideName) -> None:
    """Takes a damaged entry out of a job's catalogue; whoever computes the side next adds it again."""
    storage = _place(located, plan, side)
    if storage is not None:
        storage.delete(ENTRY)


def add(located: Job, storage: AbstractStorage, plan: Plan) -> None:
    """Adds the sides of a finished run to its job's catalogue, if it has one; those that are there are left.

    Raises:
        StoreError: The storage refuses.
    """
    for side in ("source", "target"):
        there = _place(located, plan, side)
        if there is not None and not there.exists(ENTRY):
            _copy(storage, plan, side, _folder(there, plan.fingerprint))
            there.create(ENTRY, record.seal(Entry(plan.side_key(side), side, plan.fingerprint)))


def _place(located: Job, plan: Plan, side: SideName) -> AbstractStorage | None:
    laws = located.store.laws
    return None if laws is None else storage_at(f"{laws.rstrip('/')}/{plan.side_key(side)}")


def _folder(storage: AbstractStorage, plan: str) -> AbstractStorage:
    return storage_at(f"{storage.uri}/{plan[:32]}")


def _read(storage: AbstractStorage, key: str) -> Found:
    remedy = f"delete {storage.place(ENTRY)} and run the same command again"
    try:
        entry = record.unseal(Entry, storage.read(ENTRY))
        folder = _folder(storage, entry.plan)
        plan = record.unseal(Plan, folder.read(PLAN))
    except (FileNotFoundError, record.RecordError) as exc:
        raise DamagedRunError(storage.uri, str(exc), remedy) from exc
    if entry.key != key or plan.side_key(entry.side) != key or plan.fingerprint != entry.plan:
        raise DamagedRunError(storage.uri, "it is another side's", remedy)
    return Found(folder, plan, entry.side, "laws")


def _copy(storage: AbstractStorage, plan: Plan, side: SideName, there: AbstractStorage) -> None:
    """Copies what makes the law of a side: what its receipts speak of, but for sketches that folds have."""
    ledger, folds, folder = Ledger(storage, plan), Folds(storage, plan), RunFolder(storage)
    merged: dict[LawName, UnitSet] = {}
    keys = [PLAN]
    for law in LAWS:
        if side_of(law) == side and plan.sketched_units(law):
            keys.append(folder.frame(law))
            found = folds.covering(law, range(len(plan.sites)))
            if found is not None and contents_of(ledger, law, found[0]) == found[0]:
                merged[law] = found[0]
                keys += [key for fold in found[1] for key in (fold.output.path, folds.place(fold))]
    for receipt in ledger.receipts(side):
        unit = receipt.of(plan.unit_size)
        for output in receipt.outputs:
            if output.kind == "activations":
                wanted = plan.law[side].kind == "exact"
            else:
                wanted = unit.index not in merged.get(output.kind, UnitSet())
            if wanted:
                keys.append(output.path)
        keys.append(folder.receipt(unit))
    for key in keys:
        there.take(key, storage, key)
