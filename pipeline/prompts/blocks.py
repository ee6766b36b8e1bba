"""Reads text formats in blocks of bytes, whatever the length of their rows."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.errors import PromptFileError
from pipeline.prompts.files import PromptFile

#: Bytes that are parsed at a time. A row that does not fit is read again with larger blocks, up to the largest, a few
#: of which are what reading any file takes of memory.
BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 26


def with_room(file: PromptFile, read: Callable[[int], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
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
                raise too_long(file) from exc
            block_bytes = min(block_bytes * 8, MAX_BLOCK_BYTES)
        else:
            return


def too_long(file: PromptFile) -> PromptFileError:
    """Returns the error of a row that does not fit into the largest block."""
    quote = "" if file.format == "Parquet" else ", or a quote is never closed"
    return PromptFileError(file.place, f"a row is longer than {MAX_BLOCK_BYTES} bytes{quote}; mend that row")
