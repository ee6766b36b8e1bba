"""Opening the arrays of a store."""

from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.storage import LocalStore

from pipeline.errors import DamagedRunError


def open_array(path: Path, name: str, mode: Literal["r", "r+"]) -> "zarr.Array[Any]":
    """Returns an array of a store, which writes every chunk, also one that holds nothing but the fill value.

    Args:
        path: Folder of the store.
        name: The array in it; empty where the store is one array.
        mode: ``r`` reads, ``r+`` writes too.

    Raises:
        DamagedRunError: There is no such array.
    """
    try:
        # Else a unit without a single sample would have no shard. As an argument it is not heeded.
        with zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(store=LocalStore(path, read_only=mode == "r"), path=name, mode=mode)
    except (FileNotFoundError, ValueError) as exc:
        raise DamagedRunError(str(path / name), f"it cannot be opened ({exc})") from exc
