"""Reads prompt files in row order, batch by batch: the column with the prompts and the columns of conditions.

Parquet goes through `pyarrow.dataset`. The text formats go through the readers below it, `pyarrow.csv` and
`pyarrow.json`, for what was seen with pyarrow 26: the dataset reads a CSV file ahead of its consumer without bound,
so that memory grows with the file; of JSON Lines it takes the columns from the first block, so that a key that comes
later reads as nulls, and reads a file of one line without a newline as a null.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.errors import PromptFileError
from pipeline.prompts import blocks
from pipeline.prompts.blocks import too_long
from pipeline.prompts.delimited import TEXT_COLUMN, read_lines, read_table
from pipeline.prompts.files import PromptFile, check_columns, reading
from pipeline.prompts.json_lines import read_objects
from pipeline.prompts.where import Condition, read_text

#: Rows of a Parquet file that are read at a time.
BATCH_ROWS = 8192

_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())

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
            return _scan(file, names)
        case "JSON Lines":
            return read_objects(file, names, where)
        case "CSV" | "TSV":
            return read_table(file, names)
        case "text":
            return read_lines(file, names)


def _scan(file: PromptFile, names: Iterable[str | None]) -> Iterator[pa.RecordBatch]:
    """Yields columns of a Parquet file.

    A file of some hundred bytes may hold a long text once, for a million rows. So text is read as such dictionaries
    are written, and written out for as many rows at a time as have room. What a page of the file claims to hold is
    read at once: the format lets that be 2 GiB.
    """
    dictionaries = ds.ParquetReadOptions(dictionary_columns={name for name in names if name is not None})
    parquet = ds.ParquetFileFormat(read_options=dictionaries, default_fragment_scan_options=_STREAMED)
    dataset = ds.dataset(file.path, format=parquet, filesystem=file.filesystem)
    check_columns(file, names, dataset.schema.names)
    columns = {name: ds.field(name) for name in names}
    # Nothing is read ahead, or memory would hold several row groups.
    for batch in dataset.to_batches(
        columns=columns,
        batch_size=_batch_rows(file, dataset, names),
        batch_readahead=1,
        fragment_readahead=0,
        use_threads=False,
    ):
        yield from _written_out(file, batch)


def _batch_rows(file: PromptFile, dataset: ds.Dataset, names: Iterable[str | None]) -> int:
    """Returns how many rows to read at a time, fewer where they are said to be long."""
    longest = 0
    for fragment in dataset.get_fragments():
        for chunk in _chunks(fragment.metadata):
            if chunk.path_in_schema in names and chunk.num_values:
                longest = max(longest, chunk.total_uncompressed_size // chunk.num_values)
    if longest > blocks.MAX_BLOCK_BYTES:
        raise too_long(file)
    return min(BATCH_ROWS, blocks.MAX_BLOCK_BYTES // max(longest, 1))


def _chunks(metadata: Any) -> Iterator[Any]:  # noqa: ANN401
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        yield from (row_group.column(column) for column in range(row_group.num_columns))


def _written_out(file: PromptFile, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yields rows with their dictionaries written out, in as many parts as have room."""
    if max(map(_length, batch.columns), default=0) <= blocks.MAX_BLOCK_BYTES:
        plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        yield pa.RecordBatch.from_arrays(plain, batch.schema.names)
    elif batch.num_rows == 1:
        raise too_long(file)
    else:
        half = batch.num_rows // 2
        yield from _written_out(file, batch.slice(0, half))
        yield from _written_out(file, batch.slice(half))


def _length(column: pa.Array) -> int:
    """Returns the bytes of a column of texts, written out; 0 for any other column."""
    if not pa.types.is_dictionary(column.type) or column.type.value_type not in _TEXTS:
        return 0
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


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
