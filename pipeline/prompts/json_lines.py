"""Reads JSON Lines, whose columns have no types that are written down."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json

from pipeline.errors import ColumnNotFoundError, PromptFileError, WhereError
from pipeline.prompts import blocks
from pipeline.prompts.blocks import too_long, with_room
from pipeline.prompts.files import PromptFile
from pipeline.prompts.where import Condition, text_type, values

#: How far into a file a column is looked for.
PEEK_BYTES = 16 << 20

_TYPES: Mapping[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def read_objects(
    file: PromptFile, names: Iterable[str | None], where: Mapping[str, Condition]
) -> Iterator[pa.RecordBatch]:
    """Yields columns of a JSON Lines file; a row without a key has a null there.

    Raises:
        ColumnNotFoundError: No row at the start of the file has a column.
        PromptFileError: A line at the start is no JSON object, or prompts are no text.
        WhereError: A condition does not fit what its column holds.
    """
    types = _column_types(file, names, where)
    parse = arrow_json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        options = arrow_json.ReadOptions(block_size=block_bytes, use_threads=False)
        stream = file.filesystem.open_input_stream(file.path)
        with stream, arrow_json.open_json(stream, options, parse) as rows:
            yield from rows

    return with_room(file, read) if types else iter(())


def _column_types(
    file: PromptFile, names: Iterable[str | None], where: Mapping[str, Condition]
) -> dict[str, pa.DataType]:
    """Returns the type to read each column as; empty if the file has no rows.

    A number is read as its condition asks for, so that a column may hold ``1`` in one row and ``0.5`` in another.
    """
    seen: dict[str, Any] = {}
    for row in _first_rows(file):
        seen |= {key: value for key, value in row.items() if seen.get(key) is None}
        if all(seen.get(str(name)) is not None for name in names):
            break
    if not seen:
        return {}
    for name in names:
        if name not in seen:
            raise ColumnNotFoundError(file.place, name, tuple(seen))
    return {str(name): _column_type(file, str(name), seen[str(name)], where) for name in names}


def _column_type(file: PromptFile, name: str, value: Any, where: Mapping[str, Condition]) -> pa.DataType:  # noqa: ANN401
    if name not in where:
        return pa.string() if value is None else _TYPES.get(type(value)) or _refuse(file, name, value)
    wanted = text_type(where[name])
    found = _TYPES.get(type(value))
    numbers = {pa.int64(), pa.float64()}
    if value is None or found == wanted or {found, wanted} <= numbers:
        return wanted
    raise WhereError(file.place, name, str(found or type(value).__name__), values(where[name])[0])


def _refuse(file: PromptFile, name: str, value: object) -> pa.DataType:
    raise PromptFileError(file.place, f"its column {name!r} holds {type(value).__name__}s; wanted text")


def _first_rows(file: PromptFile) -> Iterator[dict[str, Any]]:
    """Yields the rows at the start of a file."""
    with file.filesystem.open_input_stream(file.path) as stream, io.BufferedReader(stream) as lines:
        left, number = PEEK_BYTES, 0
        while left > 0 and (line := lines.readline(blocks.MAX_BLOCK_BYTES + 1)):
            if len(line) > blocks.MAX_BLOCK_BYTES:
                raise too_long(file)
            left, number = left - len(line), number + 1
            if line.strip():
                yield _row(file, number, line)


def _row(file: PromptFile, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise PromptFileError(file.place, f"line {number} is not UTF-8; save the file as UTF-8") from exc
    except (ValueError, RecursionError) as exc:
        raise PromptFileError(file.place, f"line {number} is no JSON object; wanted one object a line") from exc
    if not isinstance(row, dict):
        raise PromptFileError(file.place, f"line {number} holds a {type(row).__name__}; wanted one object a line")
    return row
