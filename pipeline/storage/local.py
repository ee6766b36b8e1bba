"""A folder on a disk.

A file is written under a temporary name in its own folder and flushed, then takes its name in one step, and then its
folder is flushed: after any crash, a file that is there is whole and on the disk. Links inside the folder are refused,
never followed. Not promised: anything on disks that lie about flushing, or across machines whose caches disagree (NFS).
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, final

import google_crc32c

from pipeline.errors import PipelineError, StoreError
from pipeline.storage.interface import TEMPORARY, AbstractStorage, Guarantees, check_key

_BLOCK = 4 << 20

#: Folders that this process has flushed into those that hold them. Only a saving: it may be emptied at any time.
_flushed: set[Path] = set()
_MOST_FLUSHED = 1024


@final
class LocalStorage(AbstractStorage):
    """A folder on a disk, made when first written into.

    Args:
        root: The folder. It may itself be reached through links.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self._root)

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    @property
    def guarantees(self) -> Guarantees:
        """Hard links make the first win; fsync makes it last."""
        return Guarantees(first_wins=True, durable=True)

    def read(self, key: str) -> bytes:
        """Returns a file."""
        with self._reading(key) as file:
            return file.read()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Returns a part of a file."""
        with self._reading(key) as file:
            file.seek(start)
            return file.read(max(0, stop - start))

    def size(self, key: str) -> int:
        """Returns the bytes of a file."""
        with self._reading(key) as file:
            return os.fstat(file.fileno()).st_size

    def exists(self, key: str) -> bool:
        """Returns whether there is such a file; a link is none."""
        try:
            return stat.S_ISREG(os.lstat(self._path(key)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def keys(self, prefix: str = "") -> list[str]:
        """Walks the folder; links are left out."""
        top = self._path(prefix) if prefix else self._root
        if prefix and top.is_symlink():
            raise StoreError(str(top), "it is a link, and a run has none", "used")
        found = []
        for folder, folders, names in os.walk(top, followlinks=False):
            folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]
            at = Path(folder)
            found += [at / name for name in names if not TEMPORARY.fullmatch(name) and not (at / name).is_symlink()]
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def names(self) -> list[str]:
        """Looks at the top folder alone."""
        try:
            return sorted(name for name in os.listdir(self._root) if not TEMPORARY.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StoreError(str(self._root), _problem(exc)) from exc

    def write(self, key: str, data: bytes) -> None:
        """Writes, flushes, renames, flushes the folder."""
        with self.writing(key) as file:
            file.write(data)

    def create(self, key: str, data: bytes) -> bool:
        """Writes, flushes, links, flushes the folder: of several links of one name the first counts."""
        path = self._path(key)
        with self._storing(key), _staged(path, self._root) as temporary:
            with _Writer.open(temporary) as file:
                file.write(data)
                file.sync()
            won = True
            try:
                os.link(temporary, path, follow_symlinks=False)
            except FileExistsError:
                won = False
            _sync(path.parent)  # also for the loser, who may go on as if the file were his
        return won

    def note(self, key: str, data: bytes) -> None:
        """Writes and renames, and flushes nothing."""
        path = self._path(key)
        with self._storing(key), _staged(path, self._root) as temporary:
            with _Writer.open(temporary) as file:
                file.write(data)
            os.replace(temporary, path)

    def delete(self, key: str) -> None:
        """Unlinks a file, or the link that is in its place."""
        with self._storing(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))

    def delete_all(self, prefix: str) -> None:
        """Removes a folder; links in it are removed, not followed."""
        path = self._path(prefix)
        with self._storing(prefix), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def remove_if_empty(self) -> None:
        """Removes the folder if nothing is in it but empty folders."""
        for folder, _, _ in os.walk(self._root, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def measure(self, key: str) -> tuple[int, int]:
        """Reads the file in blocks."""
        checksum, size = 0, 0
        with self._reading(key) as file:
            while block := file.read(_BLOCK):
                checksum = google_crc32c.extend(checksum, block)
                size += len(block)
        return size, checksum

    def open(self, key: str) -> BinaryIO:
        """Opens a file to read."""
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.fdopen(descriptor, "rb")
            os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from exc
        except OSError as exc:
            raise StoreError(str(path), _problem(exc), "read") from exc
        raise StoreError(str(path), "it is no file", "read")

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """Streams to a temporary file; flushes and renames it at the end."""
        path = self._path(key)
        with self._storing(key), _staged(path, self._root) as temporary:
            with _Writer.open(temporary) as file:
                yield file
                file.sync()
            os.replace(temporary, path)
            _sync(path.parent)

    def take(self, key: str, other: AbstractStorage, other_key: str) -> None:
        """Links the other file where it can, else copies it. Files are never written into, so links are safe."""
        path = self._path(key)
        if isinstance(other, LocalStorage):
            with other._reading(other_key), self._storing(key), _staged(path, self._root) as temporary:
                try:
                    os.link(other._path(other_key), temporary, follow_symlinks=False)
                except OSError:
                    pass  # another disk, or one without links
                else:
                    os.replace(temporary, path)
                    _sync(path.parent)
                    return
        with other.open(other_key) as source, self.writing(key) as file:
            shutil.copyfileobj(source, file, _BLOCK)

    def sweep(self, but: str) -> None:
        """Removes temporaries."""
        for folder, folders, names in os.walk(self._root, followlinks=False):
            if folder == str(self._root) and but in folders:
                folders.remove(but)
            for name in [*folders, *names]:
                if TEMPORARY.fullmatch(name):
                    path = Path(folder, name)
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        """Where a key lies, reached through no link."""
        path = self._root
        for part in check_key(key).split("/"):
            if path != self._root and path.is_symlink():
                raise StoreError(str(path), "it is a link, and a run has none", "used")
            path = path / part
        return path

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[BinaryIO]:
        with self.open(key) as file:
            try:
                yield file
            except StoreError:
                raise
            except OSError as exc:
                raise StoreError(str(self._path(key)), _problem(exc), "read") from exc

    @contextlib.contextmanager
    def _storing(self, key: str) -> Iterator[None]:
        try:
            yield
        except PipelineError:
            raise
        except OSError as exc:
            raise StoreError(str(self._path(key)), _problem(exc)) from exc


@final
class _Writer(io.RawIOBase, BinaryIO):
    """A new file, written through `os.write`."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._place = descriptor, 0

    @classmethod
    def open(cls, path: Path) -> "_Writer":
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return cls(os.open(path, flags, 0o644))

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._place += size
        return size

    def tell(self) -> int:
        return self._place

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@contextlib.contextmanager
def _staged(path: Path, root: Path) -> Iterator[Path]:
    """A temporary name beside a path under `root`, whose folder is made; what is left of it is removed."""
    _make_folder(path.parent, root)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _make_folder(path: Path, root: Path) -> None:
    """Makes a folder and those above it; each is flushed into the one that holds it.

    Also one that is there already: whoever made it may have died before that.
    """
    if path.is_dir() and (path in _flushed or not path.is_relative_to(root)):
        return
    _make_folder(path.parent, root)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        _sync(path.parent)
    except OSError as exc:
        if path == root:
            raise StoreError(str(root), _problem(exc)) from exc
        raise
    if len(_flushed) >= _MOST_FLUSHED:
        _flushed.clear()
    _flushed.add(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(exc: OSError) -> str:
    if exc.errno == errno.ELOOP:
        return "it is a link, and a run has none"
    return exc.strerror or str(exc)
