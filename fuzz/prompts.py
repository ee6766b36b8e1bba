"""Prompt files: any bytes, whatever the suffix, are prompts or an `InputError`."""

import io
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.prompts import select
from schemas.job.prompts import Range, Side

_FOLDER = Path(tempfile.mkdtemp())
_SUFFIXES = (".jsonl", ".csv", ".tsv", ".txt", ".parquet")
_WHERE: tuple[dict[str, Any], ...] = ({}, {"n": 1}, {"n": Range(min=0.5)}, {"kind": ["a", "b"]})

#: Rows that are read of a file: a few bytes may stand for millions.
_MOST_ROWS = 10_000


def seeds() -> list[bytes]:
    """A table in each format; the first two bytes choose the format and a condition."""
    rows = [{"text": f'a "{n}", b', "kind": "ab"[n % 2], "n": n} for n in range(4)]
    jsonl = b"".join(b'{"text": "a, %d", "kind": "a", "n": %d}\n' % (n, n) for n in range(4))
    csv = b'text,kind,n\n"a, ""b""\nc",a,1\nd,b,2\n'
    tables = [jsonl, csv, csv.replace(b",", b"\t"), b"one\ntwo\n\nthree"]
    for options in ({"compression": "zstd"}, {"use_dictionary": False, "compression": "none"}):
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream, **options)
        tables.append(stream.getvalue())
    kinds = [0, 1, 2, 3, 4, 4]
    return [bytes([kind, where]) + table for kind, table in zip(kinds, tables, strict=True) for where in (0, 2, 3)]


def check(data: bytes) -> None:
    """Reads a file as a side."""
    kind, where = (data + b"\0\0")[:2]
    path = _FOLDER / f"a{_SUFFIXES[kind % len(_SUFFIXES)]}"
    path.write_bytes(data[2:])
    side = Side(path=str(path), column="text", where=_WHERE[where % len(_WHERE)], limit=_MOST_ROWS)
    try:
        num = sum(len(batch) for batch in select(side))
    except InputError:
        return
    if not 0 < num <= _MOST_ROWS:
        raise AssertionError(f"{num} prompts")
