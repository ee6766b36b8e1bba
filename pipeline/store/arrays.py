"""Sharded Zarr v3 arrays in a run's storage: a shard is one file, written once and whole, and read whole or in part.

How an array is laid out is known from the plan, so that nothing is believed of the ``zarr.json`` that lies beside the
shards for other programs; a copy of it, made anew, is what shards are written and read by.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from pipeline.errors import DamagedRunError
from pipeline.storage import AbstractStorage

METADATA = "zarr.json"


@final
@dataclass(frozen=True)
class Layout:
    """How an array lies in shards.

    Args:
        shape: Of the array.
        chunks: Of an inner chunk.
        shards: Of a shard, a multiple of `chunks`.
        dtype: NumPy's name of the type.
        fill: What is read where nothing was written.
        compressors: What packs the bytes of a chunk; the last should add a checksum, for Zarr itself adds none.
        attributes: What the array says of itself.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    dtype: str
    fill: float
    compressors: tuple[BytesBytesCodec, ...]
    attributes: "dict[str, Any] | None" = None


@final
class ShardedArray:
    """An array of a storage.

    Args:
        storage: Where it lies.
        name: Key of its folder.
        layout: How it lies there.
    """

    def __init__(self, storage: AbstractStorage, name: str, layout: Layout) -> None:
        self._storage, self._name = storage, name
        self.shape = layout.shape
        store = _Overlay(None, "")
        # Else a unit without a single sample would have no shard. As an argument it is not heeded.
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.create_array(
                store=store,
                shape=layout.shape,
                chunks=layout.chunks,
                shards=layout.shards,
                dtype=layout.dtype,
                fill_value=layout.fill,
                compressors=list(layout.compressors),
                attributes=layout.attributes,
            )
        self._metadata = store.written[METADATA]

    @property
    def metadata(self) -> bytes:
        """What ``zarr.json`` is to say."""
        return self._metadata

    @property
    def metadata_key(self) -> str:
        """Where ``zarr.json`` lies."""
        return f"{self._name}/{METADATA}"

    def create(self) -> None:
        """Writes ``zarr.json``, for other programs; one that is there is left."""
        self._storage.create(self.metadata_key, self._metadata)

    def key(self, *shard: int) -> str:
        """Returns the key of a shard, given its place in the grid of shards."""
        return f"{self._name}/{self._local(shard)}"

    def encode(self, shard: tuple[int, ...], region: tuple[slice, ...], values: NDArray[Any]) -> bytes:
        """Returns the file of a shard.

        Args:
            shard: Its place in the grid of shards.
            region: What part of the array it is, whole.
            values: The values there.
        """
        store = _Overlay(None, "", {METADATA: self._metadata})
        with zarr.config.set({"array.write_empty_chunks": True}):
            _opened(store)[region] = values
        return store.written[self._local(shard)]

    def decode(self, shard: tuple[int, ...], region: tuple[slice, ...], data: bytes, remedy: str = "") -> NDArray[Any]:
        """Returns values of a shard, given its file.

        Raises:
            DamagedRunError: A checksum in it does not match.
        """
        store = _Overlay(None, "", {METADATA: self._metadata, self._local(shard): data})
        return _values(_opened(store), region, self._storage.place(self.key(*shard)), remedy)

    def read(self, region: tuple[slice, ...], place: str, remedy: str = "") -> NDArray[Any]:
        """Returns values, of which only the chunks that hold them are read.

        Args:
            region: What part of the array.
            place: What to call it in an error.
            remedy: What to do about an error.

        Raises:
            DamagedRunError: A checksum does not match.
        """
        return _values(self._stored, region, place, remedy)

    @cached_property
    def _stored(self) -> "zarr.Array[Any]":
        return _opened(_Overlay(self._storage, self._name, {METADATA: self._metadata}))

    def _local(self, shard: tuple[int, ...]) -> str:
        return "/".join(["c", *map(str, shard), *["0"] * (len(self.shape) - len(shard))])


def _opened(store: "_Overlay") -> "zarr.Array[Any]":
    return zarr.open_array(store=store, mode="r+", zarr_format=3)


def _values(array: "zarr.Array[Any]", region: tuple[slice, ...], place: str, remedy: str) -> NDArray[Any]:
    try:
        return np.asarray(array[region])
    except (ValueError, OSError, RuntimeError, EOFError) as exc:
        said = " ".join(str(exc).split())
        raise (DamagedRunError(place, said, remedy) if remedy else DamagedRunError(place, said)) from exc


@final
class _Overlay(Store):
    """A store whose files are in memory, and those that are not, in a folder of a storage, which is never written."""

    def __init__(self, storage: AbstractStorage | None, name: str, written: "dict[str, bytes] | None" = None) -> None:
        super().__init__(read_only=False)
        self._storage, self._name = storage, name
        self.written: dict[str, bytes] = {} if written is None else written

    supports_writes = True
    supports_deletes = True
    supports_partial_writes = False
    supports_listing = True

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Returns a file or a part of it."""
        found = self._part(key, byte_range)
        return None if found is None else (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    def _part(self, key: str, wanted: ByteRequest | None) -> bytes | None:
        if key in self.written or self._storage is None:
            whole = self.written.get(key)
            return None if whole is None else whole[_span(wanted, len(whole))]
        place = f"{self._name}/{key}"
        try:
            if wanted is None:
                return self._storage.read(place)
            span = _span(wanted, self._storage.size(place) if not isinstance(wanted, RangeByteRequest) else 0)
            return self._storage.read_range(place, span.start, span.stop)
        except FileNotFoundError:
            return None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Returns parts of files."""
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        """Returns whether there is such a file."""
        return key in self.written or (self._storage is not None and self._storage.exists(f"{self._name}/{key}"))

    async def set(self, key: str, value: Buffer) -> None:
        """Keeps a file in memory."""
        self.written[key] = value.to_bytes()

    async def delete(self, key: str) -> None:
        """Forgets a file in memory."""
        self.written.pop(key, None)

    async def list(self) -> AsyncIterator[str]:
        """Yields the files in memory."""
        for key in list(self.written):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yields the files in memory that begin so."""
        for key in list(self.written):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yields what lies in a folder of memory."""
        start = f"{prefix}/" if prefix else ""
        for name in {key.removeprefix(start).split("/")[0] for key in self.written if key.startswith(start)}:
            yield name


def _span(wanted: ByteRequest | None, size: int) -> slice:
    match wanted:
        case RangeByteRequest():
            return slice(wanted.start, wanted.end)
        case OffsetByteRequest():
            return slice(wanted.offset, size)
        case SuffixByteRequest():
            return slice(max(0, size - wanted.suffix), size)
        case _:
            return slice(0, size)
