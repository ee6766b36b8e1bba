"""The plan's canonical copy of one side: a Parquet file with one row group a unit, so that workers read their own."""

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedRunError
from pipeline.prompts.query import Prompts, encoded, joined, select
from schemas.files import staged, sync
from schemas.job import Side

_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("prompt", pa.string())])
_FORMAT: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}

# Entries of the footer. Parquet's own checksums cover pages, not their headers nor the footer.
_FINGERPRINT, _CHECKSUMS, _SEAL = b"actmap.fingerprint", b"actmap.checksums", b"actmap.seal"


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """One side's prompts, cut into units.

    Args:
        path: The file.
        metadata: Its footer: what is where in it.
        fingerprint: The fingerprint of the prompts.
        checksums: CRC-32 of each unit's prompts, eight hexadecimal digits each.
    """

    path: Path
    metadata: pq.FileMetaData
    fingerprint: str
    checksums: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "Snapshot":
        """Returns the snapshot in a file, of which only the footer is read.

        Raises:
            DamagedRunError: The file is missing, damaged, or no snapshot.
        """
        with _reading(path), path.open("rb") as file:
            # `metadata.schema` would tie the footer into a reference cycle, and megabytes would wait for the collector.
            parquet = pq.ParquetFile(file)
            metadata, schema = parquet.metadata, parquet.schema_arrow.remove_metadata()
            entries = metadata.metadata or {}
            fingerprint, checksums, seal = (entries.get(key, b"").decode() for key in (_FINGERPRINT, _CHECKSUMS, _SEAL))
        if not seal or schema != _SCHEMA:
            raise DamagedRunError(str(path), "it is no snapshot of prompts")
        snapshot = cls(path, metadata, fingerprint, tuple(checksums.split()))
        if seal != _seal(fingerprint, snapshot.checksums, metadata.num_rows):
            raise DamagedRunError(str(path), "its footer is not the one that was written")
        return snapshot

    @property
    def num_prompts(self) -> int:
        """Number of prompts."""
        return int(self.metadata.num_rows)

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.checksums)

    def unit(self, index: int) -> list[str | None]:
        """Returns the prompts of a unit, of which alone the file is read.

        Raises:
            DamagedRunError: The file is missing or damaged.
            IndexError: There is no such unit.
        """
        if not 0 <= index < self.num_units:
            raise IndexError(f"no unit {index}: {self.path} has {self.num_units}")
        with _reading(self.path), self.path.open("rb") as file:
            parquet = pq.ParquetFile(file, metadata=self.metadata, page_checksum_verification=True)
            column = parquet.read_row_group(index, columns=["prompt"], use_threads=False).column("prompt")
            prompts: list[str | None] = column.to_pylist()
        if _checksum(column) != self.checksums[index]:
            raise DamagedRunError(str(self.path), f"the prompts of unit {index} are not those that were written")
        return prompts


def write_snapshot(side: Side, path: Path, unit_size: int) -> Snapshot:
    """Writes the prompts that a side selects, with one row group a unit, and returns them.

    The file is there as a whole or not at all.

    Raises:
        InputError: The prompts cannot be read, or there are none; nothing is written then.
        OSError: The file cannot be written.
    """
    digest, num_prompts, checksums = hashlib.sha256(), 0, []
    with _replacing(path) as file, pq.ParquetWriter(file, _SCHEMA, **_FORMAT) as writer:
        for unit in _units(select(side), unit_size):
            for part in encoded(unit.texts):
                digest.update(part)
            num_prompts += len(unit)
            checksums.append(_checksum(unit.texts))
            table = pa.Table.from_arrays([pa.array(unit.rows), unit.texts.cast(pa.string())], schema=_SCHEMA)
            writer.write_table(table, row_group_size=unit_size)
        seal = _seal(digest.hexdigest(), checksums, num_prompts)
        entries = {_FINGERPRINT: digest.hexdigest(), _CHECKSUMS: " ".join(checksums), _SEAL: seal}
        writer.add_key_value_metadata(entries)
    return Snapshot.open(path)


def _seal(fingerprint: str, checksums: Sequence[str], num_prompts: int) -> str:
    return hashlib.sha256(f"{fingerprint} {' '.join(checksums)} {num_prompts}".encode()).hexdigest()


def _checksum(texts: pa.Array | pa.ChunkedArray) -> str:
    crc = 0
    for part in encoded(texts):
        crc = zlib.crc32(part, crc)
    return f"{crc:08x}"


def _units(batches: Iterable[Prompts], unit_size: int) -> Iterator[Prompts]:
    """Yields the same prompts, `unit_size` at a time; the last unit may be smaller."""
    waiting: list[Prompts] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= unit_size:
            whole = joined(waiting)
            stop = len(whole) - len(whole) % unit_size
            yield from (whole.slice(start, start + unit_size) for start in range(0, stop, unit_size))
            waiting = [whole.slice(stop, len(whole))]
    if any(map(len, waiting)):
        yield joined(waiting)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as exc:
        raise DamagedRunError(str(path), " ".join(str(exc).split())) from exc


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` once it is complete and on the disk."""
    with staged(path) as partial:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    sync(path.parent)
