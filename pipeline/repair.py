"""Repair: what is damaged in a run is written anew where that can be, and deleted where the next fit computes it again.

A unit runs again when its receipt or one of its files is damaged. It runs as it did before: what is known of its
quarantined prompts and split micro-batches is written down first. Sketches that folds alone have cannot be had without
their units, so all units of a fold run again that lost one of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import final

import torch

from act.steer import CARD
from pipeline import artifact
from pipeline.errors import DamagedRunError, OtherPlanError, StorageError, StoreError
from pipeline.folder import CURRENT, LEASE, PLAN, REPORT, REPORT_CHECKSUM, SPEC, SPEC_CHECKSUM, STEER, STEERS, RunFolder
from pipeline.folds import Folds
from pipeline.former import copy_former
from pipeline.frames import write_frame
from pipeline.layout import checksum_line
from pipeline.ledger import REPAIR, Ledger
from pipeline.pieces import Pieces
from pipeline.plan import check_free, earlier_prompts
from pipeline.prompts import Snapshot, write_snapshot
from pipeline.quarantine import RunRecords
from pipeline.sketch import Frame
from pipeline.storage import AbstractStorage
from pipeline.store import ActivationStore, SketchStore
from pipeline.verification.arrays import laid_out
from pipeline.verify import Damage, verify
from schemas import record
from schemas.card import Card, SideCard
from schemas.fold import Fold, UnitSet
from schemas.job import Job
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName, Unit, side_of
from schemas.receipt import Quarantined, Receipt, Split

Tell = Callable[[str], None]


def repair(storage: AbstractStorage, plan: Plan, located: Job, spec: bytes, tell: Tell) -> None:
    """Repairs a run, whose lease the caller holds; the fit that follows does the rest.

    Args:
        storage: Where the run lies.
        plan: The plan of its spec, made anew, so that the input is as it was if this is the run's plan.
        located: The job, with absolute paths.
        spec: The file that it was read from.
        tell: Takes what was done, in sentences.

    Raises:
        OtherPlanError: The run is of another plan; nothing was touched.
        DamagedRunError: The prompts changed while they were written anew.
        StoreError: The storage refuses.
    """
    check_repairable(storage, plan)
    damages = [damage for damage in verify(storage, plan=plan) if damage.kind != "unknown"]
    if damages:
        _Repair(storage, plan, located, spec, tell).all(damages)


def check_repairable(storage: AbstractStorage, plan: Plan) -> None:
    """Checks that a run is of a plan, by its own one, or by its receipts if that is damaged.

    Raises:
        OtherPlanError: It is not.
    """
    try:
        if storage.exists(PLAN):
            check_free(storage, plan)
            return
    except (DamagedRunError, StoreError):
        pass
    plans = set(_plans(storage))
    if plan.fingerprint not in plans and (plans or not _has_prompts(storage, plan)):
        problem = f"it has no {PLAN} that can be read, and no receipt or prompts of this plan"
        raise OtherPlanError(storage.uri, problem)


def _has_prompts(storage: AbstractStorage, plan: Plan) -> bool:
    """Whether the prompts of a side lie there, as this plan has them."""
    for side in SIDES:
        with suppress(DamagedRunError, StoreError):
            if Snapshot.open(storage, RunFolder(storage).prompts(side)).facts == plan.side(side):
                return True
    return False


def _plans(storage: AbstractStorage) -> Iterator[str]:
    """Yields the fingerprint of the plan that each good receipt names."""
    for side in SIDES:
        for key in storage.keys(RunFolder(storage).receipts(side)):
            with suppress(record.RecordError, OSError):
                yield record.unseal(Receipt, storage.read(key)).plan


@final
class _Repair:
    """The repair of one run."""

    def __init__(self, storage: AbstractStorage, plan: Plan, located: Job, spec: bytes, tell: Tell) -> None:
        self._storage, self._plan, self._located, self._spec, self._tell = storage, plan, located, spec, tell
        self._folder, self._ledger, self._folds = RunFolder(storage), Ledger(storage, plan), Folds(storage, plan)
        self._activations, self._sketches = ActivationStore(storage, plan), SketchStore(storage, plan)

    def all(self, damages: Sequence[Damage]) -> None:
        """Repairs what is damaged, what others need first."""
        keys = {kind: [one.key for one in damages if one.kind == kind] for kind in {one.kind for one in damages}}
        units = {one.unit for one in damages if one.kind in {"receipt", "output"} and one.unit is not None}
        if "plan" in keys:
            self._write(PLAN, record.seal(self._plan))
        for side in SIDES:
            if any(key.startswith(self._folder.prompts(side)) for key in keys.get("prompts", [])):
                self._write_prompts(side)
        for array, _ in laid_out(self._storage, self._plan):
            if array.metadata_key in keys.get("layout", []):
                self._write(array.metadata_key, array.metadata)
        self._drop("former", keys.get("former", []))
        copy_former(self._storage, self._plan, self._located)
        if "spec" in keys:
            self._write(SPEC_CHECKSUM, checksum_line(self._spec, SPEC))
            self._write(SPEC, self._spec)
        self._drop("fold", keys.get("fold", []))
        units |= self._bereft(units)
        for law in LAWS:
            if self._folder.frame(law) in keys.get("frame", []):
                self._write_frame(law, units)
        self._drop("note", [key for key in keys.get("note", []) if not key.startswith(f"{LEASE}/")])
        self._run_again(units)
        self._drop("report", [REPORT, REPORT_CHECKSUM] if "report" in keys else [])
        self._drop_steers(keys.get("steer", []))

    # What is written anew

    def _write(self, key: str, data: bytes) -> None:
        self._remove(key)
        self._storage.write(key, data)
        self._tell(f"{key} was damaged and is written anew")

    def _write_prompts(self, side: SideName) -> None:
        key = self._folder.prompts(side)
        for name in (f"{key}.json", key):
            self._remove(name)
        which = self._located.source if side == "source" else self._located.target
        earlier = earlier_prompts(self._located, side)
        written = write_snapshot(which, self._storage, key, self._plan.unit_size, earlier)
        if written.facts != self._plan.side(side):
            raise DamagedRunError(self._storage.place(key), "the input changed while it was written anew", REPAIR)
        self._tell(f"the prompts of the {side} were damaged and are written anew")

    def _write_frame(self, law: LawName, lost: set[Unit]) -> None:
        """Writes the frame that is in the sketches of a law; one of no sketches is chosen anew by the fit."""
        key, frame = self._folder.frame(law), self._counted_in(law, lost)
        self._remove(key)
        if frame is not None:
            write_frame(self._storage, self._plan, law, frame)
        self._tell(f"{key} was damaged and is " + ("chosen anew" if frame is None else "written anew"))

    def _counted_in(self, law: LawName, lost: set[Unit]) -> Frame | None:
        sites = range(len(self._plan.sites))
        found = self._folds.covering(law, sites)
        if found is not None:
            return _frame(sketch.frame for sketch in self._folds.load(found[1], sites))
        for unit in self._plan.units():
            receipt = self._find(unit) if unit.side == side_of(law) and unit not in lost else None
            if receipt is not None and receipt.output(law) is not None:
                return _frame(sketch.frame for sketch in self._folds.unit(receipt, law, sites))
        return None

    # What is computed again

    def _bereft(self, lost: set[Unit]) -> set[Unit]:
        """Returns the units whose sketches are nowhere but in folds that have a unit which runs again.

        Such a fold is of receipts that are no more, and is passed by; so it goes, and with it what it alone has.
        """
        bereft = set[Unit]()
        folds = [fold for law in LAWS for fold in self._folds.of(law)]
        while True:
            broken = [fold for fold in folds if any(unit in lost | bereft for unit in self._units(fold))]
            more = {unit for fold in broken for unit in self._units(fold) if not self._has_sketch(fold.law, unit)}
            if more <= lost | bereft:
                break
            bereft |= more - lost
        for fold in broken if self._plan.compacts else ():
            self._folds.drop(fold)
        return bereft

    def _units(self, fold: Fold) -> list[Unit]:
        return [self._plan.unit(side_of(fold.law), index) for index in UnitSet.of(fold)]

    def _has_sketch(self, law: LawName, unit: Unit) -> bool:
        return self._storage.exists(self._sketches.shard(law, unit.index))

    def _run_again(self, units: set[Unit]) -> None:
        """Deletes units: the receipt first, for without it nobody believes the files."""
        records, pieces, card = RunRecords(self._storage, self._plan), Pieces(self._storage), self._card()
        for unit in sorted(units, key=lambda one: (SIDES.index(one.side), one.index)):
            lost, splits = self._history(unit, card)
            if lost:
                records.remember(unit, lost)
            if splits:
                pieces.remember(unit, splits)
            self._remove(self._folder.receipt(unit))
            if self._plan.kept(unit.side) != "none":
                self._remove(self._activations.shard(unit))
            for law in LAWS:
                if self._plan.sketches(law, unit):
                    self._remove(self._sketches.shard(law, unit.index))
        if units:
            names = ", ".join(str(unit) for unit in sorted(units, key=str)[:5]) + (", …" if len(units) > 5 else "")
            self._tell(f"{len(units)} damaged {'unit runs' if len(units) == 1 else 'units run'} again: {names}")

    def _history(self, unit: Unit, card: Card | None) -> tuple[tuple[Quarantined, ...], tuple[Split, ...]]:
        """Returns what was quarantined and split when a unit ran: by its receipt, or else by the card of the steer."""
        receipt = self._find(unit)
        if receipt is not None:
            return receipt.quarantined, receipt.splits
        if card is None:
            return (), ()
        return history(card.source if unit.side == "source" else card.target, unit)

    def _find(self, unit: Unit) -> Receipt | None:
        try:
            return self._ledger.find(unit)
        except (StorageError, MemoryError):
            return None

    def _card(self) -> Card | None:
        try:
            return record.load(Card, self._storage.read(f"{artifact.current(self._storage)}/{CARD}"))
        except (OSError, record.RecordError):
            return None

    # What is dropped

    def _drop(self, kind: str, keys: Sequence[str]) -> None:
        for key in keys:
            if kind == "fold":  # its record, and its file
                stem = "/".join(key.split("/")[:3]).removesuffix(".json")
                self._remove(f"{stem}.json")
                self._storage.delete_all(stem)
            else:
                self._remove(key)
            self._tell(f"{key} was damaged and is dropped")

    def _drop_steers(self, keys: Sequence[str]) -> None:
        """Deletes damaged steers, and what says that one of them counts: the fit makes the same again."""
        current = None
        with suppress(StorageError):
            current = artifact.current(self._storage)
        for key in sorted({"/".join(key.split("/")[:2]) if key.startswith(f"{STEERS}/") else key for key in keys}):
            if key == STEER or key.startswith(f"{STEER}/"):
                self._remove(STEER)  # it is led to the steer again
            elif key in {CURRENT, current}:
                self._remove(CURRENT)
            if key.startswith(f"{STEERS}/"):
                self._storage.delete_all(key)
            self._tell(f"{key} was damaged and is made again")

    def _remove(self, key: str) -> None:
        """Deletes a file, or the folder that is in its place."""
        try:
            self._storage.delete(key)
        except StoreError:
            self._storage.delete_all(key)


def history(side: SideCard, unit: Unit) -> tuple[tuple[Quarantined, ...], tuple[Split, ...]]:
    """Returns what a card says of a unit: its quarantined prompts, and the micro-batches that ran in pieces."""
    lost = tuple(one for one in side.quarantined if unit.start <= one.row < unit.stop)
    return lost, tuple(Split(one.batch, one.parts) for one in side.splits if one.unit == unit.index)


def _frame(parts: Iterator[Frame]) -> Frame:
    """Returns one frame for the neurons of several, in order."""
    tensors = [part.to_tensors() for part in parts]
    return Frame.from_tensors({name: torch.cat([one[name] for one in tensors]) for name in tensors[0]})
