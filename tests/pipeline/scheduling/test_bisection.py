"""Bisection against a world that is told beforehand."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scheduling.bisection import Rows, culprits


def search(rows: Rows, ends: Callable[[Rows], bool]) -> tuple[Rows, list[Rows]]:
    """Returns what the search finds, and what it probed."""
    found, probed = culprits(rows), []
    try:
        probe = next(found)
        while True:
            probed.append(probe)
            probe = found.send(ends(probe))
    except StopIteration as stop:
        return stop.value, probed


@settings(max_examples=40)
@given(st.integers(1, 300), st.data())
def test_one_culprit_takes_log2_probes_and_two_to_confirm(num_rows, data):
    culprit = data.draw(st.integers(0, num_rows - 1))
    found, probed = search(tuple(range(num_rows)), lambda rows: culprit in rows)
    assert found == (culprit,)
    assert len(probed) <= math.ceil(math.log2(num_rows)) + 2


@settings(max_examples=40)
@given(st.integers(2, 64), st.data())
def test_several_that_end_workers_only_together_are_found_exactly(num_rows, data):
    together = data.draw(st.sets(st.integers(0, num_rows - 1), min_size=2, max_size=4))
    found, probed = search(tuple(range(num_rows)), lambda rows: together <= set(rows))
    assert found == tuple(sorted(together))
    assert len(probed) <= 4 * len(together) * math.ceil(math.log2(num_rows)) + 8


@settings(max_examples=40)
@given(st.sets(st.sets(st.integers(0, 20), min_size=1, max_size=3).map(frozenset), min_size=1, max_size=4))
def test_of_several_causes_one_is_found_whole_and_with_nothing_beside_it(causes):
    found, _ = search(tuple(range(21)), lambda rows: any(cause <= set(rows) for cause in causes))
    assert set(found) in causes
    assert not any(cause < set(found) for cause in causes)


def test_a_harmless_micro_batch_blames_nobody():
    found, probed = search(tuple(range(16)), lambda rows: False)
    assert found == ()
    assert probed[-2:] == [tuple(range(16))] * 2


@pytest.mark.parametrize("death", range(12))
def test_a_worker_that_dies_by_chance_blames_nobody(death):
    numbers = iter(range(1000))
    found, _ = search(tuple(range(16)), lambda rows: next(numbers) == death)
    assert found == ()


@pytest.mark.parametrize("death", range(12))
def test_a_worker_that_dies_by_chance_hides_no_culprit(death):
    numbers = iter(range(1000))
    found, _ = search(tuple(range(16)), lambda rows: next(numbers) == death or 11 in rows)
    assert found == (11,)
