"""An object store behind a URL, through fsspec: s3, gs and abfs; ``memory://`` for trials; what else fsspec opens.

What each promises:

| scheme | a file is whole | `create` | survives loss of power |
|---|---|---|---|
| s3, gs, abfs | yes: an object appears by one PUT | a conditional PUT, one winner on any machine | yes |
| an S3 look-alike that ignores the condition, which is tried | yes | looks, then puts: racers may all win | yes |
| memory | yes, in one process | one winner in one process | no |
| others (sftp, hdfs, …) | as far as the file system's own writes are | looks, then puts | not known |

A put whose answer was lost is neither done nor failed: `create` reads back and compares. So it may tell two racers who
wrote the very same bytes that each of them won; what is to have one owner must say whose it is.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, BinaryIO, Final, TypeVar, final

import fsspec
import google_crc32c

from pipeline.errors import PipelineError, StorageKeyError, StoreError
from pipeline.storage.interface import AbstractStorage, Guarantees, check_key

T = TypeVar("T")

_BLOCK: Final = 16 << 20
_BUFFER: Final = 1 << 20

_CONDITIONAL: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_COPIES: Final = frozenset({"s3", "s3a", "gs", "gcs", "memory"})  # adlfs begins a copy, and does not wait for its end
_FOLDERLESS: Final = _CONDITIONAL | {"memory"}

#: An object that is there from the first trial on, to be refused at every later one. No key has such a name.
_TRIAL: Final = ".first-wins.partial"

#: Seconds between attempts.
_PAUSES: Final = (0.1, 0.4, 1.6)
_LASTING: Final = (FileNotFoundError, FileExistsError, PermissionError, ImportError, ValueError, TypeError)
_LASTING_NUMBERS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE})

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@:\s]*:[^/\s]*@")

# fsspec's memory looks and then puts.
_MEMORY: Final = threading.Lock()


@final
class ObjectStorage(AbstractStorage):
    """Objects whose names begin with a URL.

    Args:
        url: Where, as fsspec understands it. Endpoints and credentials are best left to the store's own environment
            variables and files: what the URL has of a name and password is used, and never shown.

    Raises:
        StorageKeyError: fsspec has no file system for the URL, or it means a local folder.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        if self._scheme in {"file", "local"}:
            raise StorageKeyError(self.uri, "wanted a local folder's path rather than its URL")
        try:
            fsspec.get_filesystem_class(self._scheme)
        except (ValueError, ImportError) as exc:
            raise StorageKeyError(self.uri, _problem(exc)) from exc

    def __reduce__(self) -> tuple[type["ObjectStorage"], tuple[str]]:
        """Connections stay where they are; the URL goes."""
        return ObjectStorage, (self._url,)

    @property
    def uri(self) -> str:
        """The URL without name and password."""
        return _CREDENTIALS.sub("", self._url)

    @property
    def guarantees(self) -> Guarantees:
        """As the table above says. The first time, a store that should honour conditions is asked whether it does.

        Raises:
            StoreError: It cannot be asked.
        """
        first_wins = self._scheme == "memory" or (self._scheme in _CONDITIONAL and self._conditional)
        return Guarantees(first_wins=first_wins, durable=self._scheme in _CONDITIONAL)

    def read(self, key: str) -> bytes:
        """Gets an object."""
        return bytes(self._do(key, "read", lambda remote, path: remote.cat_file(path)))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Gets a part of an object."""
        if stop <= start:
            self.size(key)
            return b""
        try:
            return bytes(self._do(key, "read", lambda remote, path: remote.cat_file(path, start=start, end=stop)))
        except StoreError:
            if self.size(key) <= start:  # some stores refuse a range that begins past the end
                return b""
            raise

    def size(self, key: str) -> int:
        """Asks for an object's size."""
        found = self._do(key, "read", lambda remote, path: _fresh(remote).info(path))
        if found["type"] != "file":
            raise _missing(self.place(key))
        return int(found["size"])

    def exists(self, key: str) -> bool:
        """Asks for an object."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str = "") -> list[str]:
        """Lists objects; those with names that are no keys are left out."""
        remote, root = self._remote()
        folder = f"{root}/{check_key(prefix)}" if prefix else root
        try:
            names = self._answer(self.place(prefix), "read", lambda: _fresh(remote).find(folder))
        except FileNotFoundError:
            return []
        found = [name.removeprefix(f"{root}/") for name in names if name.startswith(f"{root}/")]
        return sorted(key for key in found if _is_key(key) and (not prefix or key.startswith(f"{prefix}/")))

    def write(self, key: str, data: bytes) -> None:
        """Puts an object."""
        self._do(key, "written", lambda remote, path: self._put(remote, path, data))

    def create(self, key: str, data: bytes) -> bool:
        """Puts an object on condition that there is none, where the store can; else looks first."""
        if not self.guarantees.first_wins:
            if self.exists(key):
                return False
            self.write(key, data)
            return True
        if self._scheme == "memory":
            return self._create_in_memory(key, data)
        try:
            self._do(key, "created", lambda remote, path: remote.pipe_file(path, data, mode="create"))
        except (FileExistsError, StoreError) as exc:
            # Perhaps our own put was done and only its answer lost; repeated, by us or the library, it is refused.
            try:
                return self.read(key) == data
            except FileNotFoundError:
                raise exc if isinstance(exc, StoreError) else StoreError(self.place(key), _problem(exc)) from exc
        return True

    def note(self, key: str, data: bytes) -> None:
        """Puts an object."""
        self.write(key, data)

    def delete(self, key: str) -> None:
        """Deletes an object."""
        with contextlib.suppress(FileNotFoundError):
            self._do(key, "deleted", lambda remote, path: remote.rm_file(path))

    def delete_all(self, prefix: str) -> None:
        """Deletes the objects of a prefix, one after the other."""
        for key in self.keys(check_key(prefix)):
            self.delete(key)

    def remove_if_empty(self) -> None:
        """Does nothing: a prefix is no thing of its own."""

    def measure(self, key: str) -> tuple[int, int]:
        """Gets the object in blocks."""
        checksum, size = 0, 0
        with self.open(key) as file:
            while block := file.read(_BLOCK):
                checksum = google_crc32c.extend(checksum, block)
                size += len(block)
        return size, checksum

    def open(self, key: str) -> BinaryIO:
        """Opens an object; what is read of it is got in parts."""
        return io.BufferedReader(_Reader(self, key, self.size(key)), _BUFFER)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """Streams to a file of this machine, which is put at the end: nothing is left of an attempt that fails."""
        check_key(key)
        try:
            with tempfile.NamedTemporaryFile() as file:
                yield file  # type: ignore[misc]
                file.flush()
                if self._scheme in _CONDITIONAL:
                    self._do(key, "written", lambda remote, path: remote.put_file(file.name, path))
                else:  # these would show the file while it grows
                    file.seek(0)
                    self.write(key, file.read())
        except PipelineError:
            raise
        except OSError as exc:
            raise StoreError(self.place(key), _problem(exc)) from exc

    def take(self, key: str, other: AbstractStorage, other_key: str) -> None:
        """Lets the store copy an object of its own; else gets and puts."""
        size = other.size(other_key)
        if isinstance(other, ObjectStorage) and self._scheme in _COPIES:
            theirs, root = other._remote()
            if theirs == self._remote()[0]:
                self._do(key, "written", lambda remote, path: remote.cp_file(f"{root}/{other_key}", path))
                return
        if size <= _BLOCK:
            self.write(key, other.read(other_key))
            return
        with other.open(other_key) as file, self.writing(key) as copy:
            while block := file.read(_BLOCK):
                copy.write(block)

    def sweep(self, but: str) -> None:
        """Does nothing: a put that fails leaves nothing."""

    @cached_property
    def _conditional(self) -> bool:
        """Whether the store refuses a put on condition that there is no such object, when there is one."""
        remote, root = self._remote()
        for _ in range(2):
            try:
                _persist(lambda: remote.pipe_file(f"{root}/{_TRIAL}", b"", mode="create"))
            except FileExistsError:
                return True
            except Exception as exc:
                if isinstance(exc, OSError) and exc.errno == errno.ENOSYS:
                    return False
                raise StoreError(self.uri, _problem(exc)) from exc
        return False

    def _create_in_memory(self, key: str, data: bytes) -> bool:
        with _MEMORY:
            if self.exists(key):
                return False
            self.write(key, data)
            return True

    def _put(self, remote: Any, path: str, data: bytes) -> None:  # noqa: ANN401
        if self._scheme not in _FOLDERLESS:
            remote.makedirs(path.rpartition("/")[0], exist_ok=True)
        remote.pipe_file(path, data)

    def _remote(self) -> tuple[Any, str]:
        """The file system, of which fsspec keeps one a thread and process, and what it calls the place."""
        remote, root = fsspec.core.url_to_fs(self._url)
        return remote, root.rstrip("/")

    def _do(self, key: str, what: str, call: Callable[[Any, str], T]) -> T:
        """Calls the store about an object, by the name that the store knows it by."""
        path = check_key(key)

        def calling() -> T:
            remote, root = self._remote()
            return call(remote, f"{root}/{path}")

        return self._answer(self.place(key), what, calling)

    def _answer(self, place: str, what: str, call: Callable[[], T]) -> T:
        """Returns what the store answers, which is asked a few times.

        Raises:
            FileNotFoundError: There is no such object.
            FileExistsError: There is one, and it was to be created.
            StoreError: It fails otherwise.
        """
        try:
            return _persist(call)
        except PipelineError:
            raise
        except Exception as exc:  # each store's library has errors of its own
            if isinstance(exc, FileExistsError) and what == "created":
                raise
            if isinstance(exc, FileNotFoundError) and what in {"read", "deleted"}:  # else there is no bucket
                raise _missing(place) from exc
            raise StoreError(place, _problem(exc), what) from exc


@final
class _Reader(io.RawIOBase):
    """An object as a file, to read from any place in it."""

    mode = "rb"

    def __init__(self, storage: ObjectStorage, key: str, size: int) -> None:
        super().__init__()
        self.name = storage.place(key)
        self._storage, self._key, self._size, self._at = storage, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401
        wanted = memoryview(buffer).cast("B")
        stop = min(self._at + len(wanted), self._size)
        if stop <= self._at:
            return 0
        data = self._storage.read_range(self._key, self._at, stop)
        wanted[: len(data)] = data
        self._at += len(data)
        return len(data)


def _persist(call: Callable[[], T]) -> T:
    """Calls, and again a few times while the failure may pass."""
    for pause in _PAUSES:
        try:
            return call()
        except _LASTING:
            raise
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno in _LASTING_NUMBERS:
                raise
            # Racers that wait for different times do not meet again.
            time.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
    return call()


def _fresh(remote: Any) -> Any:  # noqa: ANN401
    """A file system that has forgotten what it listed: others write too."""
    remote.invalidate_cache()
    return remote


def _missing(place: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)


def _is_key(name: str) -> bool:
    try:
        check_key(name)
    except StorageKeyError:
        return False
    return True


def _problem(exc: BaseException) -> str:
    said = getattr(exc, "strerror", None) or str(exc)
    return _CREDENTIALS.sub("", " ".join(said.split()).rstrip("."))[:300] or type(exc).__name__
