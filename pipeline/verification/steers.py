"""Steers: those of a run, and one by itself."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

from act.steer import CARD, README, TENSORS, readme
from pipeline import artifact
from pipeline.folder import CURRENT, FORMER, STEER, STEERS
from pipeline.storage import LocalStorage
from pipeline.tally import Tally
from pipeline.verification.audit import other_counts
from pipeline.verification.damage import Damage, Kind
from pipeline.verification.look import MISSING, OTHER_BYTES, Look, Wrong, attempt, unknown
from schemas import record
from schemas.card import Card
from schemas.plan import SIDES, Plan

FILES = (CARD, TENSORS, README)

_BLOCK = 4 << 20


@final
class SteerFiles:
    """The files of one steer.

    Args:
        look: How files are looked at.
        prefix: What their keys begin with.
        ask: Asks more of the card than that it is as it was written.
        kind: What kind of damage it is.
    """

    def __init__(
        self, look: Look, prefix: str, ask: Callable[[Card], None] = lambda card: None, kind: Kind = "steer"
    ) -> None:
        self._look, self._storage, self._prefix, self._ask, self._kind = look, look.storage, prefix, ask, kind
        self._card: Card | None = None

    def damages(self) -> Iterator[Damage]:
        """Yields what is wrong with the card, the tensors and the text."""
        for name, look in ((CARD, self._read_card), (TENSORS, self._read_tensors), (README, self._read_text)):
            key = self._prefix + name
            problem = self._look.problem(key, partial(look, key))
            if problem is not None:
                yield Damage(key, problem, None, self._kind)

    def _read_card(self, key: str) -> None:
        data = self._look.small(key)
        card = record.load(Card, data)
        if record.dump(card.sealed) != data:
            raise Wrong("it is not as it was written, its checksum differs")
        self._ask(card)
        self._card = card

    def _read_tensors(self, key: str) -> None:
        digest = hashlib.sha256()
        with self._storage.open(key) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if self._card is not None and digest.hexdigest() != self._card.tensors:
            raise Wrong("its bytes are not those that the card was written for")

    def _read_text(self, key: str) -> None:
        found = self._look.small(key)
        if self._card is not None and found != readme(self._card).encode():
            raise Wrong("it does not say what the card says")


@final
class Steers:
    """The steers of a run.

    Args:
        look: How files are looked at.
        plan: The plan.
        tally: What the good receipts say together.
    """

    def __init__(self, look: Look, plan: Plan, tally: Tally) -> None:
        self._look, self._plan, self._tally, self._storage = look, plan, tally, look.storage
        self._counts: str | None = None

    def damages(self) -> Iterator[Damage]:
        """Yields what is wrong with `CURRENT`, the steers, and the link to the one that counts."""
        problem = self._look.problem(CURRENT, self._read_current)
        if problem is not None:
            yield Damage(CURRENT, problem, None, "steer")
        keys = self._storage.keys(STEERS)
        folders = sorted({"/".join(key.split("/")[:2]) for key in keys})
        if self._counts is not None and self._counts not in folders:
            yield Damage(CURRENT, f"it names {self._counts}, which is not there", None, "steer")
        for folder in folders:
            yield from self._steer(folder, [key for key in keys if key.startswith(f"{folder}/") or key == folder])
        if isinstance(self._storage, LocalStorage):
            yield from self._link(self._storage, CURRENT if problem is not None else None)

    def former(self, *, wanted: bool) -> Iterator[Damage]:
        """Yields what is wrong with the copy of the steer that the run starts from.

        Args:
            wanted: Whether the run is laid out, so that one must be there if the plan has one.
        """
        keys = self._storage.keys(FORMER)
        if self._plan.start and (wanted or keys):
            yield from SteerFiles(self._look, f"{FORMER}/", self._ask_former, "former").damages()
            keys = [key for key in keys if key.removeprefix(f"{FORMER}/") not in FILES]
        yield from unknown(keys)

    def _ask_former(self, card: Card) -> None:
        if card.checksum != self._plan.start:
            raise Wrong("it is not the steer that the plan starts from")

    def _read_current(self) -> None:
        self._counts = artifact.current(self._storage)

    def _steer(self, folder: str, keys: list[str]) -> Iterator[Damage]:
        wanted = {f"{folder}/{name}" for name in FILES}
        if folder == self._counts or wanted <= set(keys):
            yield from SteerFiles(self._look, f"{folder}/", partial(self._ask, folder)).damages()
            yield from unknown(key for key in keys if key not in wanted)
        else:
            self._look.seen.leftovers += len(keys)  # of a driver that ended while it wrote them

    def _ask(self, folder: str, card: Card) -> None:
        if card.checksum[: artifact.NAME] != folder.removeprefix(f"{STEERS}/"):
            raise Wrong("its name is not that of its content")
        if card.plan != self._plan.fingerprint:
            raise Wrong("it is the steer of another plan")
        if self._tally.num_units == sum(self._plan.num_units(side) for side in SIDES):
            for side, said in zip(SIDES, (card.source, card.target), strict=True):
                problem = other_counts(self._plan, side, said, self._tally.sides[side])
                if problem is not None:
                    raise Wrong(problem)

    def _link(self, storage: LocalStorage, damaged: str | None) -> Iterator[Damage]:
        """What a person opens. A copy of the run may have a folder in its place, with the same files."""
        path = storage.root / STEER
        if path.is_symlink():
            found = os.readlink(path)
            if self._counts is None and damaged is None:
                yield Damage(CURRENT, f"{MISSING}, though {STEER} leads to {found}", None, "steer")
            elif self._counts is not None and found != self._counts:
                yield Damage(STEER, f"it leads to {found}, and {self._counts} counts", None, "steer")
        elif path.exists():
            for key in storage.keys(STEER) or [STEER]:
                if attempt(partial(self._same, key)) is not None:
                    yield Damage(key, "it is not as in the steer that counts", None, "steer")

    def _same(self, key: str) -> None:
        if self._storage.measure(key) != self._storage.measure(f"{self._counts}{key.removeprefix(STEER)}"):
            raise Wrong(OTHER_BYTES)
