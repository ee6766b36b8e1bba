"""Looking at a file: whatever is wrong with it becomes a sentence, never an error."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, final

from pipeline.errors import StorageError
from pipeline.storage import AbstractStorage
from pipeline.verification.damage import Damage, Seen
from schemas import record

T = TypeVar("T")

MISSING = "it is missing"
OTHER_BYTES = "its bytes are not those that were written"


@final
class Wrong(ValueError):
    """A file is not what it should be; says what is wrong with it."""


@final
class Look:
    """Looks at the files of a storage, and counts them.

    Args:
        storage: Where they are.
        seen: Counts them.
    """

    def __init__(self, storage: AbstractStorage, seen: Seen) -> None:
        self.storage, self.seen = storage, seen

    def problem(self, key: str, look: Callable[[], object]) -> str | None:
        """Returns what is wrong with a file, or None.

        What looks wrong is looked at again: a driver that is at work may have put another file in its place.

        Args:
            key: The file, which is counted.
            look: Reads it, and fails if something is wrong with it.
        """
        found = attempt(look) and attempt(look)
        self.count(key)
        return found

    def count(self, key: str) -> None:
        """Counts a file, if it is there."""
        try:
            self.seen.num_bytes += self.storage.size(key)
        except OSError:
            return
        self.seen.files += 1

    def small(self, key: str) -> bytes:
        """Returns a file, which may be as large as a record.

        Raises:
            Wrong: It is larger.
            OSError: It cannot be read.
        """
        size = self.storage.size(key)
        if size > record.MAX_RECORD_BYTES:
            raise Wrong(f"it has {size} bytes, more than the {record.MAX_RECORD_BYTES} that it may have")
        return self.storage.read(key)

    def sealed(self, cls: type[T], key: str) -> T:
        """Returns a sealed record.

        Raises:
            RecordError: It is not as it was written.
            Wrong: It is larger than a record.
            OSError: It cannot be read.
        """
        return record.unseal(cls, self.small(key))


def attempt(look: Callable[[], object]) -> str | None:
    """Returns what a look ran into, in words, or None."""
    try:
        look()
    except Exception as exc:  # noqa: BLE001 - a damaged file may break any reader, and the others are still to be read
        return said(exc)
    return None


def said(error: Exception) -> str:
    """Returns what an error says of a file, on one line."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, StorageError):
        return error.problem
    known = isinstance(error, Wrong | record.RecordError)
    return " ".join((str(error) if known else f"it cannot be read, {type(error).__name__}: {error}").split())


def unknown(keys: Iterable[str]) -> Iterator[Damage]:
    """Yields files as no part of a run."""
    return (Damage(key, "it is no part of the run", None, "unknown") for key in keys)
