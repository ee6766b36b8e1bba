"""What a run asks of the place where it lies: whole files under keys, of which the first or the last wins."""

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, final

from pipeline.errors import StorageKeyError

#: Names of temporaries: hidden, and with this ending. No key has such a name.
TEMPORARY = re.compile(r"\..*\.partial")


@final
@dataclass(frozen=True)
class Guarantees:
    """What a storage promises beyond whole files.

    Args:
        first_wins: `create` lets one of several racers win, on any machine.
        durable: What `write` and `create` returned from survives the loss of power.
    """

    first_wins: bool
    durable: bool


class AbstractStorage(ABC):
    """Whole files under keys: relative POSIX names such as ``receipts/source/00000003.json``.

    Nobody sees half a file. An object is cheap to build and pickles, so that it can go to another process.
    """

    @property
    @abstractmethod
    def uri(self) -> str:
        """What a person calls the place: an absolute path, or a URL."""

    @property
    @abstractmethod
    def guarantees(self) -> Guarantees:
        """What it promises."""

    def place(self, key: str) -> str:
        """Returns what a person calls a file."""
        return f"{self.uri}/{key}"

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Returns a file.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It cannot be read.
        """

    @abstractmethod
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` to before `stop`, or to the end if that comes first.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: It cannot be read.
        """

    @abstractmethod
    def size(self, key: str) -> int:
        """Returns the bytes of a file.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Returns whether there is such a file."""

    @abstractmethod
    def keys(self, prefix: str = "") -> list[str]:
        """Returns the keys in a folder and the folders in it, sorted; none if there is no such folder."""

    def names(self) -> list[str]:
        """Returns what lies at the top, files and folders, sorted."""
        return sorted({key.split("/")[0] for key in self.keys("")})

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Writes a file, which is there as a whole and for good when this returns. The last writer wins.

        Raises:
            StoreError: The storage refuses; the file is then as it was.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Writes a file unless there is one; returns whether this call wrote it. The first writer wins.

        Raises:
            StoreError: The storage refuses.
        """

    @abstractmethod
    def note(self, key: str, data: bytes) -> None:
        """Writes a file as `write` does, but one that the loss of power may take: heartbeats and breadcrumbs.

        Raises:
            StoreError: The storage refuses.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Deletes a file; one that is not there is fine.

        Raises:
            StoreError: The storage refuses.
        """

    @abstractmethod
    def delete_all(self, prefix: str) -> None:
        """Deletes a folder with all in it; one that is not there is fine.

        Raises:
            StoreError: The storage refuses.
        """

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Removes the place itself, if nothing lies there and it is a thing of its own, as a folder on a disk is."""

    @abstractmethod
    def measure(self, key: str) -> tuple[int, int]:
        """Returns the bytes of a file and their crc32c, as they are read now.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: It cannot be read.
        """

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """Opens a file to read from any place in it.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It cannot be read.
        """

    @abstractmethod
    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A context that gives a stream, which becomes the file when the context ends well, as by `write`.

        Raises:
            StoreError: The storage refuses.
        """

    @abstractmethod
    def take(self, key: str, other: "AbstractStorage", other_key: str) -> None:
        """Writes a file that has the bytes of another, perhaps in another storage. The last writer wins.

        Raises:
            FileNotFoundError: There is no such other file.
            StoreError: A storage refuses.
        """

    @abstractmethod
    def sweep(self, but: str) -> None:
        """Removes what writers left behind that died. Only for who knows that none is at work, but in one folder."""


def check_key(key: str) -> str:
    """Returns a key, if it is one.

    Raises:
        StorageKeyError: It might name something outside of the storage, or one of its temporaries.
    """
    parts = key.split("/")
    if any(part in {"", ".", ".."} or "\0" in part or "\\" in part for part in parts):
        raise StorageKeyError(key)
    if any(TEMPORARY.fullmatch(part) for part in parts):
        raise StorageKeyError(key)
    return key
