"""The plan's canonical copy of one side: a Parquet file with one row group a unit, so that workers read their own.

Beside it lies a sealed record of what it holds, written last: a snapshot is there when its record is. Parquet's own
checksums leave out headers and the footer; the record has one over every byte, and the SHA-256 of each unit's prompts,
by which all that is made of a unit can be found again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DamagedRunError, StorageError
from pipeline.prompts.growth import aligned
from pipeline.prompts.query import Prompts, encoded, hashed_bytes, joined, select
from pipeline.storage import AbstractStorage
from schemas.job import Side
from schemas.plan import SideFacts
from schemas.record import seal, unseal

_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("prompt", pa.large_string())])
_FORMAT: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}

# Prompts that are read at a time, about, when all are.
_BATCH = 8192

_SHA256_BYTES = 32


@final
@dataclass(frozen=True)
class Contents:
    """What a snapshot holds, as its record says it.

    Args:
        side: Its prompts, all together.
        unit_size: Prompts of a full unit.
        digests: SHA-256 of each unit's prompts, one after the other.
        size: Bytes of the Parquet file.
        crc32c: Their checksum.

    Raises:
        ValueError: These numbers do not fit together.
    """

    side: SideFacts
    unit_size: int
    digests: bytes
    size: int
    crc32c: int

    def __post_init__(self) -> None:
        num_prompts, num_bytes = self.side.num_prompts, len(self.digests)
        if self.unit_size < 1 or num_bytes != _SHA256_BYTES * -(-num_prompts // self.unit_size):
            raise ValueError(f"{num_bytes} bytes of digests for {num_prompts} prompts in units of {self.unit_size}")

    @property
    def unit_sizes(self) -> list[int]:
        """Prompts of each unit."""
        num_prompts = self.side.num_prompts
        return [min(self.unit_size, num_prompts - start) for start in range(0, num_prompts, self.unit_size)]


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """One side's prompts, cut into units.

    Args:
        storage: Where they are.
        key: The Parquet file.
        contents: What its record says.
        metadata: Its footer: what is where in it.
    """

    storage: AbstractStorage
    key: str
    contents: Contents
    metadata: pq.FileMetaData

    @classmethod
    def exists(cls, storage: AbstractStorage, key: str) -> bool:
        """Returns whether a snapshot was written to its end."""
        return storage.exists(_record(key))

    @classmethod
    def open(cls, storage: AbstractStorage, key: str) -> "Snapshot":
        """Returns a snapshot, of which only the record and the footer are read.

        Raises:
            DamagedRunError: It is missing or damaged.
            StoreError: It cannot be read.
        """
        with _reading(storage.place(_record(key))):
            contents = unseal(Contents, storage.read(_record(key)))
        with _reading(storage.place(key)), storage.open(key) as file:
            # `metadata.schema` would tie the footer into a reference cycle, and megabytes would wait for the collector.
            parquet = pq.ParquetFile(file)
            metadata, schema = parquet.metadata, parquet.schema_arrow.remove_metadata()
        snapshot = cls(storage, key, contents, metadata)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if schema != _SCHEMA or sizes != contents.unit_sizes:
            raise DamagedRunError(storage.place(key), "it is not the file that its record was written for")
        return snapshot

    @property
    def facts(self) -> SideFacts:
        """The prompts, all together."""
        return self.contents.side

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the prompts."""
        return self.facts.fingerprint

    @property
    def num_prompts(self) -> int:
        """Number of places, those of removed prompts included."""
        return self.facts.num_prompts

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.contents.digests) // _SHA256_BYTES

    def digest(self, index: int) -> str:
        """Returns the SHA-256 of a unit's prompts in hexadecimal digits: equal for equal prompts, in any run.

        Raises:
            IndexError: There is no such unit.
        """
        self._check(index)
        return self.contents.digests[_SHA256_BYTES * index :][:_SHA256_BYTES].hex()

    def unit(self, index: int) -> list[str | None]:
        """Returns the prompts of a unit, of which alone the file is read; None for a null or a removed prompt.

        Raises:
            DamagedRunError: The file is missing or damaged.
            IndexError: There is no such unit.
        """
        self._check(index)
        prompts: list[str | None] = self._read(index, index + 1).texts.to_pylist()
        return prompts

    def removed(self, index: int) -> NDArray[np.int64]:
        """Returns the rows of a unit, from 0, whose prompts were removed, `[removed]`.

        Raises:
            DamagedRunError: The file is missing or damaged.
            IndexError: There is no such unit.
        """
        self._check(index)
        if not self.facts.num_removed:
            return np.empty(0, np.int64)
        return np.flatnonzero(self._read(index, index + 1).removed)

    def batches(self) -> Iterator[Prompts]:
        """Yields all prompts, removed ones too, in canonical order.

        Raises:
            DamagedRunError: The file is missing or damaged.
        """
        return (self._read(start, stop) for start, stop in self._spans())

    def verify(self) -> Iterator[int]:
        """Yields the index of each unit whose prompts are not those that were written.

        Raises:
            DamagedRunError: All prompts are, but another byte of the file is not as it was written.
        """
        num_damaged = 0
        for start, stop in self._spans():
            if self._is_whole(start, stop):
                continue
            for index in range(start, stop):
                if not self._is_whole(index, index + 1):
                    num_damaged += 1
                    yield index
        place = self.storage.place(self.key)
        with _reading(place):
            if not num_damaged and self.storage.measure(self.key) != (self.contents.size, self.contents.crc32c):
                raise DamagedRunError(place, "a byte beside its prompts is not as it was written")

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yields ranges of units that are read at once."""
        step = max(1, _BATCH // self.contents.unit_size)
        return ((start, min(start + step, self.num_units)) for start in range(0, self.num_units, step))

    def _is_whole(self, start: int, stop: int) -> bool:
        try:
            self._read(start, stop)
        except DamagedRunError:
            return False
        return True

    def _read(self, start: int, stop: int) -> Prompts:
        """Returns the prompts of some units, checked."""
        place = self.storage.place(self.key)
        with _reading(place), self.storage.open(self.key) as file:
            parquet = pq.ParquetFile(file, metadata=self.metadata, page_checksum_verification=True)
            table = parquet.read_row_groups(range(start, stop), use_threads=False)
            rows, texts = (table.column(name).combine_chunks() for name in _SCHEMA.names)
        prompts = Prompts(rows.to_numpy(), texts)
        found = b"".join(_digests(encoded(prompts), self.contents.unit_size))
        if found != self.contents.digests[_SHA256_BYTES * start : _SHA256_BYTES * stop]:
            units = f"unit {start}" if stop == start + 1 else f"units {start} to {stop - 1}"
            raise DamagedRunError(place, f"the prompts of {units} are not those that were written")
        return prompts

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_units:
            raise IndexError(f"no unit {index}: {self.storage.place(self.key)} has {self.num_units}")


def fingerprint(side: Side, earlier: Snapshot | None = None) -> SideFacts:
    """Returns how many prompts a side selects, and their fingerprint.

    Args:
        side: The side.
        earlier: The side's prompts in an earlier run, from which this one goes on.

    Raises:
        InputError: As `select` does, or the side does not go on from the earlier run.
        DamagedRunError: The earlier run's prompts are damaged.
    """
    tally = _Tally()
    for prompts in _selected(side, earlier):
        tally.add(prompts, encoded(prompts))
    return tally.facts


def write_snapshot(
    side: Side, storage: AbstractStorage, key: str, unit_size: int, earlier: Snapshot | None = None
) -> Snapshot:
    """Writes the prompts that a side selects, with one row group a unit, and returns them.

    Args:
        side: The side.
        storage: Where to.
        key: The Parquet file. A snapshot of that name is replaced.
        unit_size: Prompts of a unit; the last may have fewer.
        earlier: The side's prompts in an earlier run, from which this one goes on.

    Raises:
        InputError: As `fingerprint`; nothing is written then.
        DamagedRunError: The earlier run's prompts are damaged.
        StoreError: The storage refuses.
    """
    tally, digests = _Tally(), bytearray()
    with storage.writing(key) as file:
        with pq.ParquetWriter(file, _SCHEMA, **_FORMAT) as writer:
            for prompts in _whole_units(_selected(side, earlier), unit_size):
                data = encoded(prompts)
                tally.add(prompts, data)
                digests += b"".join(_digests(data, unit_size))
                table = pa.Table.from_arrays([pa.array(prompts.rows), prompts.texts], schema=_SCHEMA)
                writer.write_table(table, row_group_size=unit_size)
        storage.delete(_record(key))  # before the file is replaced that it was written for
    contents = Contents(tally.facts, unit_size, bytes(digests), *storage.measure(key))
    storage.write(_record(key), seal(contents))
    return Snapshot.open(storage, key)


@final
class _Tally:
    """Counts and hashes prompts as they pass."""

    def __init__(self) -> None:
        self._digest, self._num_prompts, self._num_removed = hashlib.sha256(), 0, 0

    def add(self, prompts: Prompts, data: pa.LargeBinaryArray) -> None:
        self._digest.update(hashed_bytes(data))
        self._num_prompts += len(prompts)
        self._num_removed += int(np.count_nonzero(prompts.removed))

    @property
    def facts(self) -> SideFacts:
        return SideFacts(self._num_prompts, self._digest.hexdigest(), self._num_removed)


def _selected(side: Side, earlier: Snapshot | None) -> Iterator[Prompts]:
    if earlier is None:
        return select(side)
    num_earlier = earlier.num_prompts - earlier.facts.num_removed
    return aligned(earlier.storage.place(earlier.key), num_earlier, earlier.batches(), select(side))


def _record(key: str) -> str:
    return f"{key}.json"


def _digests(data: pa.LargeBinaryArray, unit_size: int) -> Iterator[bytes]:
    """Yields the SHA-256 of each unit."""
    for start in range(0, len(data), unit_size):
        yield hashlib.sha256(hashed_bytes(data[start : start + unit_size])).digest()


def _whole_units(batches: Iterable[Prompts], unit_size: int) -> Iterator[Prompts]:
    """Yields the same prompts, some units at a time; only the last unit may be smaller."""
    waiting: list[Prompts] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= unit_size:
            whole = joined(waiting)
            stop = len(whole) - len(whole) % unit_size
            yield whole.slice(0, stop)
            waiting = [whole.slice(stop, len(whole))]
    if any(map(len, waiting)):
        yield joined(waiting)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as exc:
        raise DamagedRunError(place, " ".join(str(exc).split())) from exc
