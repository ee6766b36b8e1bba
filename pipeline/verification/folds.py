"""The folds of a run, and which units need no sketch of their own because of them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import final

from pipeline.folder import RunFolder
from pipeline.folds import Folds, foldable
from pipeline.ledger import Ledger
from pipeline.verification.damage import Damage
from pipeline.verification.look import MISSING, Look, Wrong, attempt, unknown
from schemas.fold import Fold, UnitSet
from schemas.plan import LAWS, LawName, Plan, side_of
from schemas.receipt import Output, Receipt

FOLDS = "folds"


@final
class MergedUnits:
    """The folds of a run.

    Args:
        look: How files are looked at.
        plan: The plan.
    """

    def __init__(self, look: Look, plan: Plan) -> None:
        self._look, self._plan = look, plan
        self._storage, self._folder = look.storage, RunFolder(look.storage)
        self._folds, self._ledger = Folds(look.storage, plan), Ledger(look.storage, plan)
        self._listed: dict[LawName, list[str]] = {}
        self._units: dict[LawName, UnitSet] = {}
        self._good: set[Output] = set()
        self._sums: dict[str, _Sum] = {}
        self._denied: set[LawName] = set()

    def has(self, law: LawName, unit: int) -> bool:
        """Returns whether good folds of all sites have a unit; before that is denied, folds are listed anew."""
        if unit not in self._units.get(law, UnitSet()):
            keys = self._storage.keys(self._folder.folds(law))
            if keys != self._listed.get(law):
                self._listed[law], self._units[law] = keys, self._good_units(law)
        found = unit in self._units[law]
        self._denied |= set() if found else {law}
        return found

    def damages(self) -> Iterator[Damage]:
        """Yields what is wrong with folds by themselves."""
        for law in LAWS:
            yield from self._law(law)
        folders = tuple(f"{self._folder.folds(law)}/" for law in LAWS)
        yield from unknown(key for key in self._storage.keys(FOLDS) if not key.startswith(folders))

    def add(self, receipt: Receipt) -> None:
        """Takes what a good receipt says, to be compared with the folds that have its unit."""
        for one in self._sums.values():
            one.add(receipt)

    def compared(self) -> Iterator[Damage]:
        """Yields what is wrong with folds once all receipts were added, and all units asked for.

        That is folds of other sketches than receipts speak of, and records that are missing though units need them.
        """
        for key, one in self._sums.items():
            problem = one.problem and attempt(partial(self._compare, key, one.fold))
            if problem is not None:
                yield Damage(key, problem, None, "fold")
        for law in LAWS:
            keys = self._storage.keys(self._folder.folds(law))
            for record, problem in self._unread(keys):
                if problem == MISSING and law in self._denied:
                    yield Damage(record, problem, None, "fold")
                elif problem == MISSING:
                    self._look.seen.leftovers += sum(_record(key) == record for key in keys)

    def _law(self, law: LawName) -> Iterator[Damage]:
        keys = self._storage.keys(self._folder.folds(law))
        for record, unread in self._unread(keys):
            if unread != MISSING:
                yield Damage(record, unread, None, "fold")
        for key in (key for key in keys if _record(key) == key):
            found: list[Fold] = []
            problem, damaged = self._look.problem(key, partial(self._read, law, key, found.append)), key
            if problem is None:
                damaged = found[-1].output.path
                problem = self._look.problem(damaged, partial(self._check, found[-1]))
            if problem is None:
                self._sums[key] = _Sum(found[-1], self._plan)
            elif self._storage.exists(key):  # else a reducer has put another in its place
                yield Damage(damaged, problem, None, "fold")

    def _unread(self, keys: list[str]) -> Iterator[tuple[str, str]]:
        """Yields records that are no files though there are files of theirs, each with what is wrong with it."""
        for record in sorted({_record(key) for key in keys} - set(keys)):
            problem = self._look.problem(record, partial(self._look.small, record))
            if problem is not None:
                yield record, problem

    def _read(self, law: LawName, key: str, found: Callable[[Fold], None]) -> None:
        """Reads a record, and checks it against the plan.

        Raises:
            Wrong: It is not of this plan.
        """
        fold, plan = self._look.sealed(Fold, key), self._plan
        if fold.law != law or self._folds.place(fold) != key or _record(fold.output.path) != key:
            raise Wrong("it is another fold's")
        if fold.key != plan.side_key(side_of(law)) or not 0 <= fold.first < fold.stop <= len(plan.sites):
            raise Wrong("it is not of this plan")
        contents, num_units = UnitSet.of(fold), plan.num_units(side_of(law))
        if contents.units >> num_units or not all(foldable(plan, law, unit) for unit in contents):
            raise Wrong("it has units that no fold may have")
        found(fold)

    def _check(self, fold: Fold) -> None:
        """Checks the file of a fold.

        Raises:
            DamagedRunError: It is not as it was written.
        """
        if fold.output not in self._good:
            self._ledger.check(fold.output)
            self._good.add(fold.output)

    def _good_units(self, law: LawName) -> UnitSet:
        groups: dict[int, list[Fold]] = {}
        for fold in self._folds.of(law):
            key = self._folds.place(fold)
            if attempt(partial(self._read, law, key, _ignore)) is None and attempt(partial(self._check, fold)) is None:
                groups.setdefault(UnitSet.of(fold).units, []).append(fold)
        merged = 0
        for units, folds in groups.items():
            if all(any(fold.covers(site) for fold in folds) for site in range(len(self._plan.sites))):
                merged |= units
        return UnitSet(merged)

    def _compare(self, key: str, fold: Fold) -> None:
        """Compares a fold with the receipts, anew.

        Raises:
            Wrong: They differ.
        """
        if self._storage.exists(key) and self._look.sealed(Fold, key) == fold:
            one = _Sum(fold, self._plan)
            for receipt in self._ledger.receipts(side_of(fold.law)):
                one.add(receipt)
            if one.problem is not None:
                raise Wrong(one.problem)


def _record(key: str) -> str:
    """Returns the record of the fold that a file is of: ``folds/LAW/NAME.json`` of ``folds/LAW/NAME/c/0/0``."""
    return "/".join(key.split("/")[:3]).removesuffix(".json") + ".json"


def _ignore(fold: Fold) -> None:
    """Takes a fold that is only to be read."""


@final
class _Sum:
    """What receipts say of the units of a fold, summed as they pass.

    Args:
        fold: The fold.
        plan: The plan.
    """

    def __init__(self, fold: Fold, plan: Plan) -> None:
        self.fold, self._wanted, self._found, self._num_samples = fold, UnitSet.of(fold), UnitSet(), 0
        self._per_prompt = plan.spec["compute"]["max_tokens"] if fold.law == "tokens" else plan.rows_per_prompt
        # An image has no tokens: what its sites give of a prompt stands in no receipt.
        self._counts = fold.law != "tokens" or plan.model.kind == "causal-lm"

    def add(self, receipt: Receipt) -> None:
        """Adds a unit, if the fold has it."""
        output = receipt.output(self.fold.law)
        if output is not None and receipt.unit in self._wanted:
            self._found = self._found.with_unit(receipt.unit, output)
            self._num_samples += receipt.num_samples(self._per_prompt)

    @property
    def problem(self) -> str | None:
        """What is wrong once all receipts passed, or None; a unit without a good one is named elsewhere."""
        if self._found.units != self._wanted.units:
            return None
        if self._found != self._wanted:
            return "it is not of the sketches that receipts speak of"
        if self._counts and self._num_samples != self.fold.num_samples:
            return "it has not as many samples as receipts say"
        return None
