"""How folders of files are published: whole, durable, or not at all.

A folder is written under a temporary name beside its place, flushed to disk, and then takes its name in one step. Files
of runs are written by `pipeline.storage`.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path


def publish_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of files that appears under its name in one step. Of several racers one wins.

    Raises:
        FileExistsError: Something of that name exists and is no empty folder.
    """
    with staged_folder(path) as temporary:
        for name, data in files.items():
            _write(temporary / name, data)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A context that gives an empty folder beside `path`, which takes that name when the context ends well.

    Whoever writes the files flushes them. What is left after a failure is removed.

    Raises:
        FileExistsError: Something of that name exists and is no empty folder.
    """
    temporary = _partial(path)
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        _rename_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(path.parent)


def _rename_folder(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except OSError as exc:
        if exc.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from exc
        raise


def sync(path: Path) -> None:
    """Flushes a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
