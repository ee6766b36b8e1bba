"""The prompts that a side selects, streamed in canonical order."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import EmptySelectionError
from pipeline.prompts.draw import lots
from pipeline.prompts.files import find_files
from pipeline.prompts.formats import read_rows
from pipeline.prompts.where import matching
from schemas.job import Side
from schemas.plan import SideFacts

# What stands for a null in a fingerprint, where a prompt has its length.
_NULL = ((1 << 64) - 1).to_bytes(8, "little")


@final
@dataclass(frozen=True, eq=False)
class Prompts:
    """Selected prompts that follow each other in canonical order.

    Args:
        rows: Their places in the canonical order of all rows, `[prompts]`.
        texts: The prompts themselves, `[prompts]`; large strings, null where the file has a null.
    """

    rows: NDArray[np.int64]
    texts: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.rows)

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


def fingerprint(side: Side) -> SideFacts:
    """Returns how many prompts a side selects, and their fingerprint.

    Raises:
        InputError: As `select` does.
    """
    digest, num_prompts = hashlib.sha256(), 0
    for prompts in select(side):
        num_prompts += len(prompts)
        for part in encoded(prompts.texts):
            digest.update(part)
    return SideFacts(num_prompts, digest.hexdigest())


def encoded(texts: pa.Array | pa.ChunkedArray) -> Iterator[bytes]:
    """Yields prompts as a fingerprint hashes them: the length as eight bytes, then the UTF-8; a null has no length."""
    for text in texts.to_pylist():
        if text is None:
            yield _NULL
        else:
            data = text.encode()
            yield len(data).to_bytes(8, "little") + data


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
        yield _smallest(joined(pool), num, seed)


def _smallest(prompts: Prompts, num: int, seed: int) -> Prompts:
    """Returns the `num` prompts with the smallest lots, in their order."""
    if len(prompts) <= num:
        return prompts
    return prompts.take(np.sort(np.argpartition(lots(prompts.rows, seed), num - 1)[:num]))
