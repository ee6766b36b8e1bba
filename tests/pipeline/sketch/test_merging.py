import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.sketch import HistogramSketch, merge_tree
from pipeline.sketch.errors import NoSketchError
from tests.pipeline.sketch.columns import ALL_KINDS, columns
from tests.pipeline.sketch.conformance import pilot, same
from tests.pipeline.sketch.shuffled import digest

ROOT = Path(__file__).parents[3]


def sketched(*batches: torch.Tensor) -> HistogramSketch:
    sketch = HistogramSketch.empty(pilot(batches[0]))
    for batch in batches:
        sketch.update(batch)
    return sketch


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7, 8, 21])
def test_a_tree_is_the_merge_of_all_and_changes_none(num_parts: int) -> None:
    values = columns(8 * num_parts, 1, ALL_KINDS)
    parts = [HistogramSketch.empty(pilot(values)) for _ in range(num_parts)]
    for part, rows in zip(parts, values.split(8), strict=True):
        part.update(rows)
    before = [part.to_words() for part in parts]

    assert same(merge_tree(parts), sketched(values))
    assert all(torch.equal(part.to_words(), words) for part, words in zip(parts, before, strict=True))


def test_a_tree_keeps_few_sketches_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    values = columns(64, 2)
    alive: set[int] = set()
    most = 0

    def parts() -> Iterator[HistogramSketch]:
        nonlocal most
        for rows in values.split(1):
            sketch = HistogramSketch.empty(pilot(values))
            sketch.update(rows)
            alive.add(id(sketch))
            most = max(most, len(alive))
            yield sketch

    merge = HistogramSketch.merge

    def counting(first: HistogramSketch, second: HistogramSketch) -> HistogramSketch:
        result = merge(first, second)
        alive.difference_update((id(first), id(second)))
        alive.add(id(result))
        return result

    monkeypatch.setattr(HistogramSketch, "merge", counting)
    merge_tree(parts())

    assert most <= 7
    assert len(alive) == 1


def test_there_is_no_tree_of_nothing() -> None:
    with pytest.raises(NoSketchError, match="found 0 sketches to merge"):
        merge_tree([])


@pytest.mark.slow
def test_processes_that_merge_in_other_orders_get_the_same_bits(tmp_path: Path) -> None:
    values = columns(600, 3, ALL_KINDS)
    for unit, rows in enumerate(values.split(40)):
        sketch = HistogramSketch.empty(pilot(values))
        sketch.update(rows)
        np.save(tmp_path / f"{unit:02}.npy", sketch.to_words().numpy())

    command = [sys.executable, "-m", "tests.pipeline.sketch.shuffled", str(tmp_path)]
    running = [subprocess.Popen([*command, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for seed in (1, 2)]
    found = {process.communicate(timeout=100)[0].strip() for process in running}

    assert found == {digest(sketched(values))}
