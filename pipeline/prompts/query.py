"""The prompts that a side selects, streamed in canonical order."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import EmptySelectionError
from pipeline.prompts.draw import lots
from pipeline.prompts.files import find_files
from pipeline.prompts.formats import read_rows
from pipeline.prompts.where import matching
from schemas.job import Side

#: The row of a place whose prompt an earlier run had, and this one has not.
REMOVED = -1

# What is hashed in place of a prompt's length where there is no prompt.
_NULL_LENGTH, _REMOVED_LENGTH = -1, -2

_NO_BYTES = pa.scalar(b"", pa.large_binary())

# Drawn prompts that are handed on at a time.
_BATCH = 8192


@final
@dataclass(frozen=True, eq=False)
class Prompts:
    """Selected prompts that follow each other in canonical order.

    Args:
        rows: Their places in the canonical order of all rows, `[prompts]`; `REMOVED` where a prompt was removed.
        texts: The prompts themselves, `[prompts]`; large strings, null where the file has a null or nothing is left.
    """

    rows: NDArray[np.int64]
    texts: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def removed(self) -> NDArray[np.bool_]:
        """Whether a prompt was removed, `[prompts]`."""
        removed: NDArray[np.bool_] = self.rows == REMOVED
        return removed

    def take(self, places: NDArray[np.int64]) -> "Prompts":
        """Returns the prompts at some places, copied."""
        return Prompts(self.rows[places], self.texts.take(pa.array(places)))

    def slice(self, start: int, stop: int) -> "Prompts":
        """Returns the prompts from `start` to before `stop`."""
        return Prompts(self.rows[start:stop], self.texts[start:stop])


def select(side: Side) -> Iterator[Prompts]:
    """Yields the prompts that a side selects, in canonical order: files by name, rows in order.

    Memory holds a batch, and the drawn prompts if the side samples.

    Raises:
        InputError: A file cannot be found or read, a column or a condition does not fit, or nothing is selected.
    """
    if side.sample is not None:
        return _drawn(_selected(side), side.sample, side.seed)
    return _first(_selected(side), side.limit or math.inf)


def encoded(prompts: Prompts) -> pa.LargeBinaryArray:
    """Returns prompts as they are hashed, `[prompts]`: the length of the UTF-8 as eight bytes, then the UTF-8 itself.

    A null and a removed prompt have marks for a length, and no text.
    """
    lengths = pc.fill_null(pc.binary_length(prompts.texts), _NULL_LENGTH).to_numpy()
    lengths = np.where(prompts.removed, _REMOVED_LENGTH, lengths).astype("<i8")
    offsets = np.arange(0, 8 * len(lengths) + 1, 8)
    heads = pa.Array.from_buffers(pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(lengths)])
    texts = pc.fill_null(prompts.texts.cast(pa.large_binary()), _NO_BYTES)
    return pc.binary_join_element_wise(heads, texts, _NO_BYTES)


def hashed_bytes(encoded_prompts: pa.LargeBinaryArray) -> memoryview:
    """Returns the bytes of prompts that `encoded` returned, one prompt after the other; nothing is copied."""
    first, num = encoded_prompts.offset, len(encoded_prompts)
    _, offsets, data = encoded_prompts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[[first, first + num]]
    return memoryview(data)[bounds[0] : bounds[1]]


def joined(batches: Sequence[Prompts]) -> Prompts:
    """Returns batches as one."""
    return Prompts(np.concatenate([b.rows for b in batches]), pa.concat_arrays([b.texts for b in batches]))


def _selected(side: Side) -> Iterator[Prompts]:
    """Yields the rows that meet all conditions."""
    files = find_files(side.path)
    num_rows = num_selected = 0
    for file in files:
        for rows in read_rows(file, side.column, side.where):
            kept = np.arange(len(rows.texts), dtype=np.int64)
            if side.where:
                kept = kept[matching(file.place, rows.columns, side.where).to_numpy(zero_copy_only=False)]
            prompts = Prompts(kept + num_rows, rows.texts.take(pa.array(kept)))
            num_rows, num_selected = num_rows + len(rows.texts), num_selected + len(kept)
            if len(kept):
                yield prompts
    if not num_selected:
        where = side.model_dump(mode="json", include={"where"}, exclude_none=True)["where"]
        raise EmptySelectionError([file.place for file in files], num_rows, json.dumps(where, ensure_ascii=False))


def _first(batches: Iterable[Prompts], num: float) -> Iterator[Prompts]:
    """Yields the first `num` prompts."""
    left = num
    for batch in batches:
        yield batch if len(batch) <= left else batch.slice(0, int(left))
        left -= len(batch)
        if left <= 0:
            return


def _drawn(batches: Iterable[Prompts], num: int, seed: int) -> Iterator[Prompts]:
    """Yields the `num` prompts with the smallest lots."""
    pool: list[Prompts] = []
    num_pooled, threshold = 0, np.uint64(0xFFFFFFFFFFFFFFFF)
    for batch in batches:
        near = batch.take(np.flatnonzero(lots(batch.rows, seed) <= threshold))
        pool, num_pooled = [*pool, near], num_pooled + len(near)
        # Thinned only when twice too large, so that each prompt is moved a bounded number of times.
        if num_pooled >= 2 * num:
            best = _smallest(joined(pool), num, seed)
            pool, num_pooled, threshold = [best], len(best), lots(best.rows, seed).max()
    if pool:
        drawn = _smallest(joined(pool), num, seed)
        yield from (drawn.slice(start, start + _BATCH) for start in range(0, len(drawn), _BATCH))


def _smallest(prompts: Prompts, num: int, seed: int) -> Prompts:
    """Returns the `num` prompts with the smallest lots, in their order."""
    if len(prompts) <= num:
        return prompts
    return prompts.take(np.sort(np.argpartition(lots(prompts.rows, seed), num - 1)[:num]))
