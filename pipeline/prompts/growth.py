"""Growth: the prompts that a side selects now, at the places that an earlier run gave them.

What goes on from an earlier run has its prompts in their order, some of them removed, and new ones at the end. A
removed prompt leaves its place empty, so that all others keep theirs, and with them their units.

A sample keeps to this when rows are appended to its files: new members come last, and those that they displace are
removed. It does not when rows before its members are removed, or when its number or seed changes: others are drawn.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import GrowthError
from pipeline.prompts.query import REMOVED, Prompts

_Pair: TypeAlias = tuple[int, str | None]  # a row and its text

# Follows the last selected prompt. The text is in no file: it has no UTF-8.
_END: _Pair = (REMOVED, "\ud800")

# Appended prompts that are handed on at a time.
_BATCH = 8192


def aligned(place: str, num_earlier: int, earlier: Iterable[Prompts], selected: Iterable[Prompts]) -> Iterator[Prompts]:
    """Yields the selected prompts at their earlier places, then those that are new; memory holds a batch of each.

    Each earlier prompt is kept if its text is that of the next selected one, and removed otherwise. Rows are those of
    the selection.

    Args:
        place: What a person calls the earlier run's prompts.
        num_earlier: How many prompts they are, without removed ones.
        earlier: The prompts themselves, with the empty places of removed ones, which stay empty.
        selected: The prompts that are selected now.

    Raises:
        GrowthError: More than half of the earlier prompts would be removed.
    """
    pairs = _pairs(selected)
    following, num_seen, num_lost, first_lost = next(pairs, _END), 0, 0, None
    for batch in earlier:
        rows, following = _match(batch, following, pairs)
        lost = num_seen + np.flatnonzero((rows == REMOVED) & ~batch.removed)
        num_seen, num_lost = num_seen + len(batch), num_lost + len(lost)
        if first_lost is None and len(lost):
            first_lost = int(lost[0])
        if first_lost is not None and 2 * num_lost > num_earlier:
            raise GrowthError(place, num_earlier, first_lost)
        yield Prompts(rows, pc.if_else(pa.array(rows != REMOVED), batch.texts, None))
    appended = pairs if following is _END else itertools.chain([following], pairs)
    while some := list(itertools.islice(appended, _BATCH)):
        new_rows, texts = zip(*some, strict=True)
        yield Prompts(np.array(new_rows, np.int64), pa.array(texts, pa.large_string()))


def _pairs(batches: Iterable[Prompts]) -> Iterator[_Pair]:
    for batch in batches:
        yield from zip(batch.rows.tolist(), batch.texts.to_pylist(), strict=True)


def _match(earlier: Prompts, following: _Pair, pairs: Iterator[_Pair]) -> tuple[NDArray[np.int64], _Pair]:
    """Returns the row of each earlier prompt among the selected ones, and the selected prompt that comes next."""
    rows = np.full(len(earlier), REMOVED, np.int64)
    texts = earlier.texts.to_pylist()
    row, text = following
    for i in np.flatnonzero(~earlier.removed).tolist():
        if texts[i] == text:
            rows[i] = row
            row, text = following = next(pairs, _END)
    return rows, following
