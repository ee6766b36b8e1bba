"""Reads prompt files in row order, batch by batch: the column with the prompts and the columns of conditions.

Parquet, CSV, TSV and text go through `pyarrow.dataset`. JSON Lines goes through the reader below it, `pyarrow.json`:
the dataset's own JSON format takes its columns from the first block, so that a key that appears later reads as
nulls, and reads a file of one line without a newline as a null. Both were seen with pyarrow 26.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import csv, json

from pipeline.errors import ColumnNotFoundError, PromptFileError
from pipeline.prompts.files import PromptFile, reading
from pipeline.prompts.json_columns import column_types
from pipeline.prompts.where import Condition, read_text

#: Bytes that are parsed at a time. A row that does not fit is read again with larger blocks, up to the largest.
BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 29

#: Rows of a Parquet file that are read at a time.
BATCH_ROWS = 8192

#: The one column of a text file.
TEXT_COLUMN = "text"

# Separates no columns: the reader wants a separator, and this character is in no prompt.
_NO_DELIMITER = "\x1e"

_STREAMED = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a file that follow each other.

    Args:
        texts: Their prompts, `[rows]`; large strings.
        columns: The columns that conditions are on, each `[rows]`.
    """

    texts: pa.LargeStringArray
    columns: Mapping[str, pa.Array]


def read_rows(file: PromptFile, column: str | None, where: Mapping[str, Condition]) -> Iterator[Rows]:
    """Yields the rows of a file, in their order.

    Args:
        file: The file.
        column: The column with the prompts; None for the one of a text file.
        where: The conditions by column.

    Raises:
        PromptFileError: The file is damaged, or not in the format of its suffix, or the prompts are no text.
        ColumnNotFoundError: A column is not there.
        WhereError: A cell cannot be read as its condition asks for.
    """
    if file.format == "text":
        column = column or TEXT_COLUMN
    names = dict.fromkeys((column, *where))
    with reading(file.place):
        for batch in _batches(file, names, where):
            texts = _texts(file, column, batch.column(str(column)))
            columns = {name: batch.column(name) for name in where}
            if file.format in {"CSV", "TSV", "text"}:
                columns = {name: read_text(file.place, name, columns[name], where[name]) for name in where}
            yield Rows(texts, columns)


def _batches(file: PromptFile, names: Iterable[str | None], where: Mapping[str, Condition]) -> Iterator[pa.RecordBatch]:
    """Yields the named columns of a file."""
    match file.format:
        case "Parquet":
            return _scan(file, names, ds.ParquetFileFormat(default_fragment_scan_options=_STREAMED))
        case "JSON Lines":
            return _json(file, names, where)
        case "CSV" | "TSV":
            if file.size == 0:
                raise PromptFileError(file.place, "it is empty; wanted a first row with the names of the columns")
            return _csv(file, names)
        case "text":
            return _text(file, names)


def _scan(file: PromptFile, names: Iterable[str | None], file_format: ds.FileFormat) -> Iterator[pa.RecordBatch]:
    """Yields columns of one file through `pyarrow.dataset`, which keeps the order of rows within a fragment."""
    dataset = ds.dataset(file.path, format=file_format, filesystem=file.filesystem)
    there = dataset.schema.names
    for name in names:
        if name not in there:
            raise ColumnNotFoundError(file.place, name, there)
        if there.count(name) > 1:
            raise PromptFileError(file.place, f"{there.count(name)} of its columns are named {name!r}; wanted one")
    columns = {name: ds.field(name) for name in names}
    # Nothing is read ahead, or memory would hold several row groups.
    yield from dataset.to_batches(
        columns=columns, batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=0, use_threads=False
    )


def _csv(file: PromptFile, names: Iterable[str | None]) -> Iterator[pa.RecordBatch]:
    parse = csv.ParseOptions(delimiter="\t" if file.format == "TSV" else ",", newlines_in_values=True)
    # As text: what is inferred would depend on the first block, and `NA` or `1.0` is a prompt like any other.
    convert = csv.ConvertOptions(column_types={name: pa.string() for name in names if name is not None})

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        options = ds.CsvFragmentScanOptions(convert, csv.ReadOptions(block_size=block_bytes, use_threads=False))
        return _scan(file, names, ds.CsvFileFormat(parse, options))

    return _with_room(file, read)


def _text(file: PromptFile, names: Iterable[str | None]) -> Iterator[pa.RecordBatch]:
    parse = csv.ParseOptions(delimiter=_NO_DELIMITER, quote_char=False, ignore_empty_lines=False)
    convert = csv.ConvertOptions(column_types={TEXT_COLUMN: pa.string()})

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        lines = csv.ReadOptions(block_size=block_bytes, use_threads=False, column_names=[TEXT_COLUMN])
        return _scan(file, names, ds.CsvFileFormat(parse, ds.CsvFragmentScanOptions(convert, lines)))

    return iter(()) if file.size == 0 else _with_room(file, read)


def _json(file: PromptFile, names: Iterable[str | None], where: Mapping[str, Condition]) -> Iterator[pa.RecordBatch]:
    types = column_types(file, names, where)
    parse = json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        options = json.ReadOptions(block_size=block_bytes, use_threads=False)
        with (
            file.filesystem.open_input_stream(file.path) as stream,
            closing(json.open_json(stream, options, parse)) as rows,
        ):
            yield from rows

    return _with_room(file, read) if types else iter(())


def _with_room(file: PromptFile, read: Callable[[int], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Yields what `read` yields with blocks of a size, larger ones from the row on that does not fit."""
    block_bytes, num_seen = BLOCK_BYTES, 0
    while True:
        num_rows = 0
        try:
            for batch in read(block_bytes):
                fresh = batch.slice(max(num_seen - num_rows, 0))
                num_rows += batch.num_rows
                if fresh.num_rows:
                    num_seen += fresh.num_rows
                    yield fresh
        except pa.ArrowInvalid as exc:
            if "straddl" not in str(exc):
                raise
            if block_bytes >= MAX_BLOCK_BYTES:
                problem = f"a row is longer than {MAX_BLOCK_BYTES} bytes, or a quote is never closed; mend that row"
                raise PromptFileError(file.place, problem) from exc
            block_bytes = min(block_bytes * 8, MAX_BLOCK_BYTES)
        else:
            return


def _texts(file: PromptFile, column: str | None, array: pa.Array) -> pa.LargeStringArray:
    """Returns a column as text, whatever its type was."""
    if pa.types.is_nested(array.type):
        raise PromptFileError(file.place, f"its column {column!r} holds {array.type}; wanted text")
    texts = pc.cast(array, pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise PromptFileError(file.place, f"its column {column!r} is not UTF-8; save it as UTF-8") from exc
    return texts
