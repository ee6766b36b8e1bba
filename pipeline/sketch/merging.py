"""Merging many sketches."""

from collections.abc import Iterable

from pipeline.sketch.errors import NoSketchError
from pipeline.sketch.interface import AbstractSketch


def merge_tree(sketches: Iterable[AbstractSketch]) -> AbstractSketch:
    """Returns the merge of all sketches, which are taken one by one and not changed.

    A binary counter: sketches of as many parts are merged as soon as there are two, so that at any time no more than
    about the binary logarithm of their number are alive.

    Raises:
        NoSketchError: There are none.
        OtherFrameError: They count in different frames or grids.
        CountOverflowError: They hold more samples together than a sketch can.
    """
    waiting: list[tuple[int, AbstractSketch]] = []
    for sketch in sketches:
        merged, parts = sketch, 1
        while waiting and waiting[-1][0] == parts:
            merged = waiting.pop()[1].merge(merged)
            parts *= 2
        waiting.append((parts, merged))
    if not waiting:
        raise NoSketchError
    _, whole = waiting.pop()
    while waiting:
        whole = waiting.pop()[1].merge(whole)
    return whole
