"""The units of a run: their receipts, each prompt of them, and the files that these speak of."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import final

from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.prompts import Snapshot
from pipeline.store import ActivationStore, SketchStore
from pipeline.tally import Tally
from pipeline.verification.audit import lost_twice, other_files
from pipeline.verification.damage import Damage
from pipeline.verification.folds import MergedUnits
from pipeline.verification.look import MISSING, Look, Wrong, attempt, unknown
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName, Unit
from schemas.receipt import Output, Receipt

RECEIPTS = "receipts"


@final
class Units:
    """The units of a run.

    Args:
        look: How files are looked at.
        plan: The plan.
        snapshots: The prompts of each side, where they are as they were written.
        folds: The folds, which have the sketches that units have no more.
    """

    def __init__(self, look: Look, plan: Plan, snapshots: Mapping[SideName, Snapshot], folds: MergedUnits) -> None:
        self._look, self._plan, self._snapshots, self._folds = look, plan, snapshots, folds
        self._storage, self._folder = look.storage, RunFolder(look.storage)
        self._ledger = Ledger(look.storage, plan)
        self._activations, self._sketches = ActivationStore(look.storage, plan), SketchStore(look.storage, plan)
        self._model: str | None = None
        self._last: Receipt | None = None
        #: What the good receipts say together.
        self.tally = Tally(plan)
        #: The laws that good receipts have sketches of.
        self.sketched: set[LawName] = set()

    def damages(self, lacking: str | None) -> Iterator[Damage]:
        """Yields what is wrong, unit by unit.

        Args:
            lacking: Why no receipt may be missing; None while some may.
        """
        for unit in self._plan.units():
            key = self._folder.receipt(unit)
            problem = self._look.problem(key, partial(self._audit, unit))
            if problem is None and self._last is not None:
                self._count(self._last)
                yield from self._outputs(unit, self._last)
            elif problem != MISSING:
                yield Damage(key, str(problem), unit, "receipt")
            elif lacking is not None:
                yield Damage(key, f"{problem}, though {lacking}", unit, "receipt")
        yield from unknown(key for key in self._storage.keys(RECEIPTS) if not self._is_receipt(key))

    def _audit(self, unit: Unit) -> None:
        """Reads a receipt, and checks that it accounts for its unit.

        Raises:
            FileNotFoundError: There is none.
            Wrong: It does not.
            DamagedRunError: It is no receipt of the unit.
        """
        self._look.small(self._folder.receipt(unit))
        self._last = receipt = self._ledger.find(unit)
        if receipt is None:
            raise FileNotFoundError
        problem = other_files(self._plan, unit, receipt, self._activations, self._sketches)
        snapshot = self._snapshots.get(unit.side)
        if problem is None and snapshot is not None:
            problem = lost_twice(unit, receipt, snapshot.removed(unit.index))
        if problem is None and receipt.model != (self._model or receipt.model):
            problem = "its worker ran a model with other weights than those before it"
        if problem is not None:
            raise Wrong(problem)

    def _count(self, receipt: Receipt) -> None:
        self._model = receipt.model
        self._look.seen.add(receipt)
        self.tally.add(receipt)
        self._folds.add(receipt)
        self.sketched |= {law for law in LAWS if receipt.output(law) is not None}

    def _outputs(self, unit: Unit, receipt: Receipt) -> Iterator[Damage]:
        for output in receipt.outputs:
            if not self._is_merged(unit, output):
                problem = self._look.problem(output.path, partial(self._ledger.check, output))
                if problem is not None:
                    yield Damage(output.path, problem, unit, "output")

    def _is_merged(self, unit: Unit, output: Output) -> bool:
        """Whether a file need not be there: folds have what is in it."""
        if output.kind == "activations" or attempt(partial(self._storage.size, output.path)) != MISSING:
            return False
        return self._folds.has(output.kind, unit.index)

    def _is_receipt(self, key: str) -> bool:
        match = re.fullmatch(rf"{RECEIPTS}/(source|target)/([0-9]{{8}})\.json", key)
        return match is not None and any(
            match[1] == side and int(match[2]) < self._plan.num_units(side) for side in SIDES
        )
