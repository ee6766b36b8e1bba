"""Prompts, frames and the layouts of arrays: what a run has before its first unit."""

import re
from collections.abc import Collection, Iterator
from functools import partial
from typing import final

from pipeline.folder import ACTIVATIONS, SKETCHES, RunFolder
from pipeline.frames import read_frame
from pipeline.prompts import Snapshot
from pipeline.prompts.snapshot import Contents
from pipeline.storage import AbstractStorage
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.arrays import ShardedArray
from pipeline.verification.damage import Damage
from pipeline.verification.look import OTHER_BYTES, Look, Wrong, attempt, unknown
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName

PROMPTS, FRAMES = "prompts", "frames"

_SHARD = re.compile(r"c/([0-9]{1,12})(/0)+")


@final
class Prompts:
    """The canonical copies of a run's prompts.

    Args:
        look: How files are looked at.
        plan: The plan.
    """

    def __init__(self, look: Look, plan: Plan) -> None:
        self._look, self._plan, self._storage = look, plan, look.storage
        #: Those that are as they were written.
        self.snapshots: dict[SideName, Snapshot] = {}

    def damages(self, *, wanted: bool) -> Iterator[Damage]:
        """Yields what is wrong.

        Args:
            wanted: Whether they have to be there.
        """
        known = set()
        for side in SIDES:
            key = RunFolder(self._storage).prompts(side)
            said = f"{key}.json"
            known |= {key, said}
            if wanted or self._storage.exists(said):
                problem = self._look.problem(said, partial(self._contents, said, side))
                if problem is not None:
                    yield Damage(said, problem, None, "prompts")
                else:
                    yield from self._side(side, key, said)
        yield from unknown(key for key in self._storage.keys(PROMPTS) if key not in known)

    def _contents(self, said: str, side: SideName) -> Contents:
        contents = self._look.sealed(Contents, said)
        if contents.side != self._plan.side(side) or contents.unit_size != self._plan.unit_size:
            raise Wrong("it is not of the prompts of this plan")
        return contents

    def _side(self, side: SideName, key: str, said: str) -> Iterator[Damage]:
        damaged: list[int] = []

        def measure() -> None:
            contents = self._contents(said, side)
            if self._storage.measure(key) != (contents.size, contents.crc32c):
                raise Wrong(OTHER_BYTES)

        def read() -> None:
            snapshot = Snapshot.open(self._storage, key)
            damaged[:] = [unit for unit, _ in zip(snapshot.verify(), range(1), strict=False)]
            self.snapshots[side] = snapshot

        problem = self._look.problem(key, measure) or attempt(read)
        if problem is not None:
            attempt(read)
        if problem is not None or damaged:
            self.snapshots.pop(side, None)
            unit = self._plan.unit(side, damaged[0]) if damaged else None
            yield Damage(key, problem or OTHER_BYTES, unit, "prompts")


@final
class Arrays:
    """The frames of a run, and its Zarr arrays apart from what units wrote into them.

    Args:
        look: How files are looked at.
        plan: The plan.
    """

    def __init__(self, look: Look, plan: Plan) -> None:
        self._look, self._plan, self._storage = look, plan, look.storage

    def frames(self, wanted: Collection[LawName]) -> Iterator[Damage]:
        """Yields what is wrong with frames.

        Args:
            wanted: The laws whose frame has to be there.
        """
        known = {RunFolder(self._storage).frame(law): law for law in LAWS if self._plan.sketched_units(law)}
        for key, law in known.items():
            if law in wanted or self._storage.exists(key):
                problem = self._look.problem(key, partial(self._frame, law, key))
                if problem is not None:
                    yield Damage(key, problem, None, "frame")
        yield from unknown(key for key in self._storage.keys(FRAMES) if key not in known)

    def layouts(self, *, wanted: bool) -> Iterator[Damage]:
        """Yields what is wrong with the files that say how arrays are laid out, and what is no file of an array.

        Args:
            wanted: Whether they have to be there.
        """
        arrays = laid_out(self._storage, self._plan)
        for array, num_units in arrays:
            if wanted or self._storage.exists(array.metadata_key):
                problem = self._look.problem(array.metadata_key, partial(self._layout, array))
                if problem is not None:
                    yield Damage(array.metadata_key, problem, None, "layout")
            for key in self._storage.keys(_name(array)):
                if key != array.metadata_key and not _is_shard(array, num_units, key):
                    yield from unknown([key])
        names = tuple(f"{_name(array)}/" for array, _ in arrays)
        for folder in (ACTIVATIONS, SKETCHES):
            yield from unknown(key for key in self._storage.keys(folder) if not key.startswith(names))

    def _frame(self, law: LawName, key: str) -> None:
        self._look.small(key)
        read_frame(self._storage, self._plan, law)

    def _layout(self, array: ShardedArray) -> None:
        if self._look.small(array.metadata_key) != array.metadata:
            raise Wrong("it does not say what the plan laid out")


def laid_out(storage: AbstractStorage, plan: Plan) -> list[tuple[ShardedArray, int]]:
    """Returns the arrays of a run, and how many units have a shard in each."""
    sides = [side for side in SIDES if plan.kept(side) != "none"]
    laws = [law for law in LAWS if plan.sketched_units(law)]
    counts = [*(plan.num_units(side) for side in sides), *(plan.sketched_units(law) for law in laws)]
    arrays = [*ActivationStore(storage, plan).arrays, *SketchStore(storage, plan).arrays]
    return list(zip(arrays, counts, strict=True))


def _name(array: ShardedArray) -> str:
    return array.metadata_key.rpartition("/")[0]


def _is_shard(array: ShardedArray, num_units: int, key: str) -> bool:
    """Whether a file is that of a unit. Without a receipt it is of one that runs, or ran and was lost."""
    match = _SHARD.fullmatch(key.removeprefix(f"{_name(array)}/"))
    return match is not None and int(match[1]) < num_units and array.key(int(match[1])) == key
