"""Where the bytes of emptied storages wait: in host memory, or in a temporary file."""

import ctypes
import os
import tempfile
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable
from pathlib import Path
from typing import final

import torch

from act.errors import SpillError


class AbstractPlace(ABC):
    """Takes the bytes of storages, and gives them back once."""

    @abstractmethod
    def take(self, storage: torch.UntypedStorage) -> int | None:
        """Copies the bytes of a storage, which has some; returns their slot, or None if there is no room.

        Raises:
            SpillError: The room that there should be is not there. Nothing was taken.
        """

    @abstractmethod
    def give(self, slot: int, storage: torch.UntypedStorage) -> None:
        """Copies them into a storage of their size, and frees the slot.

        Raises:
            SpillError: They cannot be read. The slot is free all the same.
        """

    @abstractmethod
    def drop(self, slot: int) -> None:
        """Frees a slot whose bytes nobody wants."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything."""


@final
class HostPlace(AbstractPlace):
    """Host memory, up to a budget; pinned for storages of a GPU, whose copies are then faster.

    Args:
        budget: Bytes that it may hold.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._used, self._next = budget, 0, 0
        self._held: dict[int, torch.UntypedStorage] = {}

    def take(self, storage: torch.UntypedStorage) -> int | None:
        """Copies the bytes of a storage; returns None when they would pass the budget."""
        size = storage.nbytes()
        if self._used + size > self._budget:
            return None
        held = _new(size, pinned=storage.device.type == "cuda")
        held.copy_(storage)
        self._used += size
        self._next += 1
        self._held[self._next] = held
        return self._next

    def give(self, slot: int, storage: torch.UntypedStorage) -> None:
        """Copies them back."""
        storage.copy_(self._held[slot])
        self.drop(slot)

    def drop(self, slot: int) -> None:
        """Frees a slot."""
        self._used -= self._held.pop(slot).nbytes()

    def close(self) -> None:
        """Frees everything."""
        self._held.clear()
        self._used = 0


@final
class DiskPlace(AbstractPlace):
    """One temporary file of raw bytes. It has no name where the system permits that, so nothing of it can stay.

    Args:
        folder: Where it is made.

    Raises:
        SpillError: No file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._space = folder, _Space()
        self._slots: dict[int, int] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="lockstep-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failure(error) from error

    def take(self, storage: torch.UntypedStorage) -> int:
        """Writes the bytes of a storage; there is always room, until the disk is full."""
        held = storage.cpu()  # type: ignore[no-untyped-call] # itself on a CPU
        start = self._space.take(held.nbytes())
        try:
            self._all(self._file.write, start, held)
        except OSError as error:
            self._space.free(start, held.nbytes())
            raise self._failure(error) from error
        self._slots[start] = held.nbytes()
        return start

    def give(self, slot: int, storage: torch.UntypedStorage) -> None:
        """Reads them back."""
        on_cpu = storage.device.type == "cpu"
        held = storage if on_cpu else _new(storage.nbytes(), pinned=False)
        try:
            self._all(self._file.readinto, slot, held)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self.drop(slot)
        if not on_cpu:
            storage.copy_(held)

    def drop(self, slot: int) -> None:
        """Frees a slot."""
        self._space.free(slot, self._slots.pop(slot))

    def close(self) -> None:
        """Closes the file, and with it deletes it."""
        self._file.close()

    def _all(self, move: Callable[[memoryview], int | None], start: int, storage: torch.UntypedStorage) -> None:
        """Moves all bytes of a storage on a CPU between it and the file. A call may move fewer than it is asked."""
        self._file.seek(start)
        rest = _view(storage)
        while rest:
            moved = move(rest)
            if not moved:
                raise OSError(5, os.strerror(5))  # EIO: the file is shorter than what was written
            rest = rest[moved:]

    def _failure(self, error: OSError) -> SpillError:
        return SpillError(error.errno or 5, error.strerror or str(error), str(self._folder))


@final
class _Space:
    """Which bytes of a file are free: the first stretch that is long enough is taken, neighbours are joined."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []
        self._end = 0

    def take(self, size: int) -> int:
        """Returns where so many bytes begin that were free."""
        for place, (start, length) in enumerate(self._free):
            if length >= size:
                del self._free[place]
                if length > size:
                    self._free.insert(place, (start + size, length - size))
                return start
        self._end += size
        return self._end - size

    def free(self, start: int, size: int) -> None:
        """Frees bytes that were taken."""
        insort(self._free, (start, size))
        joined: list[tuple[int, int]] = []
        for begin, length in self._free:
            if joined and sum(joined[-1]) == begin:
                joined[-1] = joined[-1][0], joined[-1][1] + length
            else:
                joined.append((begin, length))
        if joined and sum(joined[-1]) == self._end:
            self._end = joined.pop()[0]
        self._free = joined


def _new(size: int, *, pinned: bool) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned).untyped_storage()


def _view(storage: torch.UntypedStorage) -> memoryview:
    """The bytes of a storage on a CPU, without a copy."""
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
