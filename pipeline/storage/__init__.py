"""Storage: where a run lies. A folder on a disk, or an object store behind a URL; both keep whole files under keys."""

from pathlib import Path

from pipeline.storage.interface import AbstractStorage, Guarantees, check_key
from pipeline.storage.local import LocalStorage

__all__ = ["AbstractStorage", "Guarantees", "LocalStorage", "check_key", "storage_at"]


def storage_at(uri: str | Path) -> AbstractStorage:
    """Returns the storage at a local path or a URL. Nothing is made, nor looked at.

    Raises:
        StorageKeyError: It is a URL that fsspec knows no file system for.
    """
    if isinstance(uri, Path) or "://" not in uri:
        return LocalStorage(Path(uri))
    if uri.startswith("file://"):
        return LocalStorage(Path(uri.removeprefix("file://")))
    from pipeline.storage.objects import ObjectStorage  # fsspec is slow to import

    return ObjectStorage(uri)
