"""How files are published: whole, durable, or not at all.

A file is written under a temporary name in its own folder, flushed to disk, and then takes its name in one step.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A context that gives a temporary name beside `path` to write under, and removes what is left of it at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            temporary.unlink()


def publish(path: Path, data: bytes) -> None:
    """Writes a file; a file of that name is replaced in one step."""
    with staged(path) as temporary:
        _write(temporary, data)
        os.replace(temporary, path)
    sync(path.parent)


def publish_first(path: Path, data: bytes) -> bool:
    """Writes a file unless one of that name exists; returns whether this call wrote it. Of several racers one wins."""
    with staged(path) as temporary:
        _write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    sync(path.parent)
    return True


def publish_folder(path: Path, files: dict[str, bytes]) -> None:
    """Writes a folder of files that appears under its name in one step.

    Raises:
        FileExistsError: A folder of that name exists and is not empty.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    temporary.mkdir(parents=True)
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        sync(temporary)
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(path)
        os.replace(temporary, path)
    except BaseException:
        for name in files:
            (temporary / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            temporary.rmdir()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
