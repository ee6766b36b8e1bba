"""Past memory: what suspended forwards keep alive, moved out of it while others run.

A passage that stops leaves its storages. Those that the budget does not hold are copied out and emptied, and get their
bytes back before it goes on: views, frames and locals never notice. Reading an emptied storage ends the process without
an exception; so a storage that anybody else may read stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from act.errors import SpillError
from act.lockstep.ledger import Ledger, has_storage, key, storage_of
from act.lockstep.places import AbstractPlace, DiskPlace, HostPlace


@final
class Spill:
    """Keeps what suspended forwards have in memory within a budget; its `turn` is for `act.lockstep.Lockstep`.

    Passages take turns in a cycle, so which of them stay is fixed: first come, until the budget is full. What the
    budget does not hold goes to host memory, and what that does not hold to a temporary file. Besides the budget there
    is always the running passage, whole. A context: the forwards have to end inside it.

    Bytes stay in memory whatever the budget: of parameters, buffers, inputs and all else that no operation of a passage
    made; of tensors that modules keep as attributes, in lists and dictionaries too; of storages that torch cannot
    resize or shares with others; and, from then on, of any that an operation of another passage has been given, such as
    a table in a cache. Code outside of passages that reads what an operation of a passage made, and that no module
    keeps, is not protected.

    A GPU's storages go from device to pinned host memory to disk. That has never run: there was no GPU. The passages
    should use the current stream.

    Args:
        modules: The model's modules by name; the model itself among them, if it keeps tensors as attributes.
        budget: Bytes of suspended passages that stay where they are.
        folder: Where the temporary file is made. It is deleted whatever happens.
        host_budget: Bytes that emptied storages may take in host memory; leave it 0 for a model on a CPU, whose
            storages are there already.

    Attributes:
        peak: Most bytes alive of all passages together so far when one stopped, itself included.
        moved: Bytes copied out so far.

    Raises:
        SpillError: The folder takes no file.
    """

    def __init__(self, modules: Mapping[str, nn.Module], budget: int, folder: Path, host_budget: int = 0) -> None:
        self._modules, self._budget = tuple(modules.values()), budget
        self._places: tuple[AbstractPlace, ...] = (HostPlace(host_budget), DiskPlace(folder))
        self._emptied: dict[int, _Emptied] = {}
        self._emptied_of: dict[int, list[int]] = {}
        self._ledger = Ledger(self._emptied, self._refill_for_another)
        self._resident: dict[int, int] = {}
        self._shared: dict[int, StorageWeakRef] = {}
        self._broken = False
        self.peak, self.moved = 0, 0

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives every storage that still lives its bytes back, and deletes the file."""
        with ExitStack() as stack:
            for place in self._places:
                stack.callback(place.close)
            self._refill(list(self._emptied))

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """A context for one turn of a passage: inside it, all that it keeps is in memory.

        Raises:
            SpillError: A disk is full, or cannot be read. Nothing is moved out any more, so that the forwards can be
                ended; the passage that was to be refilled must not go on.
        """
        self._resident.pop(number, None)
        self._refill(self._emptied_of.pop(number, []))
        with self._ledger.following(number):
            yield
        self._leave(number)

    def _leave(self, number: int) -> None:
        """Empties what the budget does not hold of a passage that stopped, oldest first to stay.

        What lives on after the end of a passage is somebody else's, and stays.
        """
        alive = self._ledger.alive(number)
        others, size = sum(self._resident.values()), sum(storage.nbytes() for _, storage in alive)
        self.peak = max(self.peak, others + size)
        self._resident[number] = size
        room = self._budget - others
        if size <= room or self._broken or self._ledger.ended(number):
            return
        self._shared = {at: reference for at, reference in self._shared.items() if storage_of(reference) is not None}
        staying = self._shared.keys() | kept_by(self._modules)
        for reference, storage in alive:
            if key(storage) in staying or not _can_be_emptied(storage) or storage.nbytes() <= room:
                room -= storage.nbytes()
            else:
                self._empty(number, reference, storage)

    def _empty(self, number: int, reference: StorageWeakRef, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        _wait_for(storage.device)
        try:
            place, slot = next((place, slot) for place in self._places if (slot := place.take(storage)) is not None)
        except SpillError:
            self._broken = True
            raise
        storage.resize_(0)
        self._emptied[key(storage)] = _Emptied(number, reference, size, place, slot)
        self._emptied_of.setdefault(number, []).append(key(storage))
        self._resident[number] -= size
        self.moved += size

    def _refill(self, storages: Iterable[int]) -> None:
        """Gives storages their bytes back; none stays empty, even if the bytes of some are lost."""
        with ExitStack() as stack:
            for storage in storages:
                if storage in self._emptied:
                    stack.callback(self._refill_one, storage)

    def _refill_one(self, storage: int) -> None:
        emptied = self._emptied.pop(storage)
        alive = storage_of(emptied.reference)
        if alive is None:
            emptied.place.drop(emptied.slot)
            return
        alive.resize_(emptied.size)
        try:
            emptied.place.give(emptied.slot, alive)
        except SpillError:
            self._broken = True
            raise
        _wait_for(alive.device)

    def _refill_for_another(self, storage: int) -> None:
        """Gives a storage its bytes back for an operation of a passage that did not make it. It stays from then on."""
        emptied = self._emptied[storage]
        self._refill_one(storage)
        self._shared[storage] = emptied.reference
        self._resident[emptied.passage] += emptied.size


@final
@dataclass(frozen=True, eq=False)
class _Emptied:
    """An emptied storage: the passage that made it, and where its bytes wait."""

    passage: int
    reference: StorageWeakRef
    size: int
    place: AbstractPlace
    slot: int


#: What every module has and what holds no tensors, such as its hooks: most of what modules keep.
_TENSORLESS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers"}


def kept_by(modules: Iterable[nn.Module]) -> set[int]:
    """Returns the identities of the storages of all tensors that modules keep now, however nested in containers."""
    found: set[int] = set()
    own: list[Any] = [value for module in modules for name, value in vars(module).items() if name not in _TENSORLESS]
    waiting: list[Any] = [own]
    seen: set[int] = set()
    while waiting:
        kept = waiting.pop()
        for value in kept.values() if isinstance(kept, dict) else kept:
            kind: Any = type(value)
            sort = _sort(kind)
            if sort == "container":
                if value and id(value) not in seen:
                    seen.add(id(value))
                    waiting.append(value)
            elif sort == "tensor" and has_storage(value):
                found.add(key(value.untyped_storage()))
    return found


@cache
def _sort(kind: type) -> Literal["tensor", "container", "other"]:
    """Returns what objects of a type are for `kept_by`. Asking once a type is quicker: modules keep many things."""
    if issubclass(kind, torch.Tensor):
        return "tensor"
    return "container" if issubclass(kind, dict | list | tuple | set | frozenset) else "other"


def _can_be_emptied(storage: torch.UntypedStorage) -> bool:
    kind = storage.device.type
    return (
        kind != "meta" and storage.nbytes() > 0 and storage.resizable() and not (kind == "cpu" and storage.is_shared())
    )


def _wait_for(device: torch.device) -> None:
    """Waits until nothing runs on a GPU that may read or write a storage which is to be freed, or was just filled."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
