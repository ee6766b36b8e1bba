"""Reads text formats in blocks of bytes, whatever the length of their rows."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.errors import PromptFileError
from pipeline.prompts.files import PromptFile

#: Bytes that are parsed at a time. A row that does not fit is read again with larger blocks, up to the largest.
BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 29


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
                problem = f"a row is longer than {MAX_BLOCK_BYTES} bytes, or a quote is never closed; mend that row"
                raise PromptFileError(file.place, problem) from exc
            block_bytes = min(block_bytes * 8, MAX_BLOCK_BYTES)
        else:
            return
