"""Reads CSV, TSV and plain text, every cell as the text it is."""

import csv as python_csv
import io
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyarrow import csv

from pipeline.errors import PromptFileError
from pipeline.prompts import blocks
from pipeline.prompts.blocks import with_room
from pipeline.prompts.files import PromptFile, check_columns

#: The one column of a plain text file.
TEXT_COLUMN = "text"

#: Columns that a table may have: to find their names, the reader takes 8 kB of memory for each.
MAX_COLUMNS = 10_000

# Separates no columns: the reader wants a separator, and this character is in no prompt.
_NO_DELIMITER = "\x1e"


def read_table(file: PromptFile, names: Iterable[str | None]) -> Iterator[pa.RecordBatch]:
    """Yields columns of a CSV or TSV file.

    Raises:
        ColumnNotFoundError: A column is not there.
        PromptFileError: The file is empty, or has more than `MAX_COLUMNS` columns.
    """
    if file.size == 0:
        raise PromptFileError(file.place, "it is empty; wanted a first row with the names of the columns")
    parse = csv.ParseOptions(delimiter="\t" if file.format == "TSV" else ",", newlines_in_values=True)
    _check_width(file, parse.delimiter)
    return _read(file, names, parse, None)


def read_lines(file: PromptFile, names: Iterable[str | None]) -> Iterator[pa.RecordBatch]:
    """Yields the lines of a plain text file; blank lines are prompts too.

    Raises:
        ColumnNotFoundError: A column other than `TEXT_COLUMN` is asked for.
    """
    parse = csv.ParseOptions(delimiter=_NO_DELIMITER, quote_char=False, ignore_empty_lines=False)
    return iter(()) if file.size == 0 else _read(file, names, parse, [TEXT_COLUMN])


def _read(
    file: PromptFile, names: Iterable[str | None], parse: csv.ParseOptions, header: list[str] | None
) -> Iterator[pa.RecordBatch]:
    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        options = csv.ReadOptions(block_size=block_bytes, column_names=header, use_threads=False)
        with _open(file) as stream, csv.open_csv(stream, options, parse) as rows:
            check_columns(file, names, rows.schema.names)
        # As text: what is inferred would depend on the first block, and `NA` or `1.0` is a prompt like any other.
        wanted = csv.ConvertOptions(include_columns=list(names), column_types=dict.fromkeys(names, pa.string()))
        with _open(file) as stream, csv.open_csv(stream, options, parse, wanted) as rows:
            yield from rows

    return with_room(file, read)


def _open(file: PromptFile) -> pa.NativeFile:
    return file.filesystem.open_input_stream(file.path)


def _check_width(file: PromptFile, delimiter: str) -> None:
    with _open(file) as stream:
        start = stream.read(blocks.BLOCK_BYTES).decode(errors="replace")
    try:
        rows = python_csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
        num_columns = len(next(filter(None, rows), []))
    except python_csv.Error as exc:
        problem = f"its first row cannot be read ({exc}); wanted the names of the columns"
        raise PromptFileError(file.place, problem) from exc
    if num_columns > MAX_COLUMNS:
        raise PromptFileError(file.place, f"it has {num_columns} columns or more; wanted at most {MAX_COLUMNS}")
