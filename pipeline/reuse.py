"""Reuse: units that another run computed as this one would are taken over: their files, and their receipts.

A unit is the same where its prompts are, its place is, and all that decides its activations is. Files are linked where
both runs lie on one disk, else copied; a sketch that the other run has not, or in another frame, is made from the
stored activations.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.folds import Folds, contents_of
from pipeline.frames import PILOT_PROMPTS, read_frame, write_frame
from pipeline.ledger import Ledger
from pipeline.plan import first_difference, read_plan
from pipeline.prompts import Snapshot
from pipeline.sketching import Sketcher
from pipeline.storage import AbstractStorage, storage_at
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.activations import kept_rows
from schemas import record
from schemas.fold import UnitSet
from schemas.job import Job
from schemas.plan import LAWS, LawName, Plan, SideName, Unit, side_of
from schemas.receipt import Output, OutputKind, Receipt


@final
@dataclass(frozen=True)
class Found:
    """A side of another run, whose units may be taken over.

    Args:
        storage: Where that run lies.
        plan: Its plan.
        side: Which of its sides.
        wanted: ``units`` takes all that this run would write of a unit, ``laws`` what its law is made of.
    """

    storage: AbstractStorage
    plan: Plan
    side: SideName
    wanted: Literal["units", "laws"]


def earlier(located: Job, side: SideName) -> Found | None:
    """Returns a side of the run that a job extends; None if it extends none.

    Raises:
        RunNotFoundError: There is no such run.
        DamagedRunError: It cannot be read.
    """
    if located.extends is None:
        return None
    storage = storage_at(located.extends)
    return Found(storage, read_plan(storage), side, "units")


def obstacle(plan: Plan, found: Found) -> str | None:
    """Returns why no unit of another run can be taken over, in words; None where units can."""
    if (
        found.side == "source"
        and (plan.sequential or found.plan.sequential)
        and found.plan.fingerprint != plan.fingerprint
    ):
        return "in a sequential fit what the source has at a site depends on all prompts"
    before, after = found.plan.activations, plan.activations
    return None if before == after else first_difference(before, after)


def take(
    storage: AbstractStorage,
    plan: Plan,
    found: Found,
    settle_frame: Callable[[LawName], None],
    tell: Callable[[str], None],
) -> Iterator[Receipt]:
    """Takes over the units of a side that are the same in another run, and yields their receipts.

    What is damaged there is left, and told: this run computes it itself.

    Args:
        storage: Where this run lies; it is laid out.
        plan: Its plan.
        found: The other run; there is no `obstacle`.
        settle_frame: Chooses the frame of a law, where the other run has another one or none.
        tell: Takes a sentence about each thing that is damaged.

    Raises:
        StoreError: The storage refuses.
    """
    yield from _Taking(storage, plan, found, settle_frame, tell).units()


@final
class _Taking:
    """A side of another run, as it is taken over.

    Args:
        storage: Where this run lies.
        plan: Its plan.
        found: The other run.
        settle_frame: Chooses the frame of a law.
        tell: Takes a sentence about each thing that is damaged.
    """

    def __init__(
        self,
        storage: AbstractStorage,
        plan: Plan,
        found: Found,
        settle_frame: Callable[[LawName], None],
        tell: Callable[[str], None],
    ) -> None:
        self._storage, self._plan, self._found, self._side = storage, plan, found, found.side
        self._settle_frame, self._tell = settle_frame, tell
        self._ledger, self._theirs = Ledger(storage, plan), Ledger(found.storage, found.plan)
        self._activations, self._sketches = ActivationStore(storage, plan), SketchStore(storage, plan)
        self._their_activations = ActivationStore(found.storage, found.plan)
        self._sketcher = Sketcher(plan, storage)
        self._laws: list[LawName] = [law for law in LAWS if side_of(law) == self._side and plan.sketched_units(law)]
        self._merged: dict[LawName, UnitSet] = {}

    def units(self) -> Iterator[Receipt]:
        """Takes the units that are the same."""
        same = [unit for unit in self._same() if self._ledger.find(unit) is None]
        if not same:
            return
        shared = self._shared()
        for law in list(shared):
            with self._telling():
                self._take_frame(law)
                self._take_folds(law, {unit.index for unit in same})
        for unit in same:
            taken: Receipt | None = None
            with self._telling():
                taken = self._unit(unit, shared)
            if taken is not None:
                yield taken

    def _unit(self, unit: Unit, shared: Collection[LawName]) -> Receipt | None:
        """Takes one unit; None if the other run has it not, or not all that this one wants."""
        receipt = self._theirs.find(unit)
        outputs = None if receipt is None else self._outputs(unit, receipt, shared)
        if receipt is None or outputs is None:
            return None
        mine = dataclasses.replace(
            receipt,
            plan=self._plan.fingerprint,
            origin=receipt.origin or receipt.plan,
            outputs=outputs,
            seconds=0.0,
            compute_seconds=0.0,
        )
        return self._ledger.commit(unit, mine)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A context that goes on after damage in the other run."""
        try:
            yield
        except DamagedRunError as exc:
            self._tell(f"not taken over, and computed here: {exc.path} is damaged: {exc.problem}")

    def _same(self) -> Iterator[Unit]:
        """Yields the units with the same prompts at the same places."""
        units = (self._plan.unit(self._side, index) for index in range(self._plan.num_units(self._side)))
        if self._found.wanted == "laws":  # the law was found by a hash over all its prompts
            yield from units
            return
        mine, other = self._snapshots()
        for unit in itertools.islice(units, self._found.plan.num_units(self._side)):
            if unit == self._found.plan.unit(unit.side, unit.index) and mine.digest(unit.index) == other.digest(
                unit.index
            ):
                yield unit

    def _shared(self) -> list[LawName]:
        """Returns the laws that both runs count alike, in one frame, which the first prompts of the side decide."""
        other = self._found.plan
        laws = [
            law for law in self._laws if other.sketched_units(law) and other.precision(law) == self._plan.precision(law)
        ]
        if laws and self._found.wanted == "units":
            mine, theirs = (snapshot.unit(0)[:PILOT_PROMPTS] for snapshot in self._snapshots())
            return laws if mine == theirs else []
        return laws

    def _snapshots(self) -> tuple[Snapshot, Snapshot]:
        key = RunFolder(self._storage).prompts(self._side)
        return Snapshot.open(self._storage, key), Snapshot.open(self._found.storage, key)

    def _outputs(self, unit: Unit, receipt: Receipt, shared: Collection[LawName]) -> tuple[Output, ...] | None:
        """Returns the files that this run wants of a unit, taken or made anew; None if they cannot all be had."""
        wanted: list[OutputKind] = [law for law in self._laws if self._plan.sketches(law, unit)]
        exact = self._plan.law[self._side].kind == "exact"
        if exact or (self._found.wanted == "units" and self._plan.kept(self._side) != "none"):
            wanted.insert(0, "activations")
        outputs = []
        for kind in wanted:
            output = self._taken(kind, receipt, shared) or self._made(kind, unit, receipt)
            if output is None:
                return None
            outputs.append(output)
        return tuple(outputs)

    def _taken(self, kind: OutputKind, receipt: Receipt, shared: Collection[LawName]) -> Output | None:
        """Takes a file of a unit; None if it is not the one that this run would write."""
        output = receipt.output(kind)
        if kind == "activations":
            alike = self._plan.kept(self._side) == self._found.plan.kept(self._side)
        else:
            alike = kind in shared
        if output is None or not alike:
            return None
        if self._found.storage.exists(output.path):
            self._theirs.check(output)
            self._storage.take(output.path, self._found.storage, output.path)
            return output
        return output if kind != "activations" and receipt.unit in self._merged.get(kind, UnitSet()) else None

    def _made(self, kind: OutputKind, unit: Unit, receipt: Receipt) -> Output | None:
        """Makes a file of a unit from its stored activations; None if there are not all of them, or it is of tokens."""
        stored = receipt.output("activations")
        there = self._found.wanted == "units" and self._found.plan.kept(self._side) == "all"
        if stored is None or kind == "tokens" or not there:
            return None
        self._theirs.check(stored)
        block = self._their_activations.read(unit)
        if kind == "activations":
            data = self._activations.encode(unit, block)
            return self._ledger.publish(unit, kind, self._activations.shard(unit), data)
        self._settle_frame(kind)
        kept = kept_rows(receipt.num_tokens, self._plan.rows_per_prompt)
        words = self._sketcher.words(kind, self._sketcher.pooled(kind, block, kept))
        data = self._sketches.encode(kind, unit.index, words)
        return self._ledger.publish(unit, kind, self._sketches.shard(kind, unit.index), data)

    def _take_frame(self, law: LawName) -> None:
        key = RunFolder(self._storage).frame(law)
        if not self._storage.exists(key):
            frame = read_frame(self._found.storage, self._found.plan, law)
            write_frame(self._storage, self._plan, law, frame)

    def _take_folds(self, law: LawName, units: set[int]) -> None:
        """Takes the folds of a law, if all their units are the same and as their receipts say."""
        theirs = Folds(self._found.storage, self._found.plan)
        found = theirs.covering(law, range(len(self._plan.sites)))
        if found is None or contents_of(self._theirs, law, found[0]) != found[0]:
            return
        contents, folds = found
        if all(unit in units for unit in contents):
            for fold in folds:
                self._theirs.check(fold.output)
                self._storage.take(fold.output.path, self._found.storage, fold.output.path)
                mine = dataclasses.replace(fold, key=self._plan.side_key(self._side))
                self._storage.write(theirs.place(fold), record.seal(mine))
            self._merged[law] = contents
