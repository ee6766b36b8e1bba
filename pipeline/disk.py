"""The disk of a run: kept within its quota, by counting, and by deleting the sketches of units that folds have."""

from collections.abc import Iterable
from typing import final

from pipeline.errors import QuotaReachedError
from pipeline.folds import Folds
from pipeline.reduce import WRITE_EVERY
from pipeline.storage import AbstractStorage
from pipeline.store import SketchStore
from schemas.fold import UnitSet, content
from schemas.plan import LAWS, LawName, Plan
from schemas.receipt import Output, Receipt


@final
class Disk:
    """What a run has stored.

    Args:
        storage: Where the run lies.
        plan: Its plan.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._quota = int(plan.spec["store"]["quota"])
        self._folds, self._sketches = Folds(storage, plan), SketchStore(storage, plan)
        self._sizes: dict[tuple[LawName, int], int] = {}
        self._contents: dict[LawName, dict[int, int]] = {law: {} for law in LAWS}
        self._stored, self._landed = 0, 0

    def add(self, receipt: Receipt) -> None:
        """Counts the files of a unit; now and then deletes sketches that are merged.

        Raises:
            QuotaReachedError: More is stored than the spec allows.
            StoreError: The storage refuses.
        """
        self._landed += 1
        self._count(receipt, receipt.outputs)
        if self._plan.compacts and self._landed % WRITE_EVERY == 0:
            self.compact()
        if self._stored > self._quota:
            raise QuotaReachedError(self._stored, self._quota)

    def add_earlier(self, receipt: Receipt) -> None:
        """Counts the files of a unit of an earlier start, as far as they are there: its sketches may be merged.

        Raises:
            StoreError: The storage refuses.
        """
        merged = self._plan.compacts
        self._count(receipt, [one for one in receipt.outputs if not merged or self._storage.exists(one.path)])

    def _count(self, receipt: Receipt, there: Iterable[Output]) -> None:
        there = list(there)
        self._stored += sum(output.size for output in there)
        if self._plan.compacts:
            for law in LAWS:
                output = receipt.output(law)
                if output is not None:
                    self._contents[law][receipt.unit] = content(receipt.unit, output)
                    if output in there:
                        self._sizes[law, receipt.unit] = output.size

    def compact(self) -> None:
        """Deletes the sketches of units that folds of all sites have.

        Raises:
            StoreError: The storage refuses.
        """
        if not self._plan.compacts:
            return
        for law in LAWS:
            found = self._folds.covering(law, range(len(self._plan.sites)))
            merged = UnitSet() if found is None else found[0]
            if not merged.is_of(self._contents[law]):
                continue  # of other sketches than the receipts speak of; nothing will be made of it
            for unit in [unit for named, unit in self._sizes if named == law and unit in merged]:
                self._storage.delete(self._sketches.shard(law, unit))
                self._stored -= self._sizes.pop((law, unit))
