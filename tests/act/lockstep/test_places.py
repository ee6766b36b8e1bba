import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.lockstep.places import AbstractPlace, DiskPlace, HostPlace, _Space


def storage(size: int, value: int) -> torch.UntypedStorage:
    return torch.full((size,), value, dtype=torch.uint8).untyped_storage()


@pytest.fixture(params=["host", "disk"])
def place(request, tmp_path: Path) -> AbstractPlace:
    return HostPlace(100) if request.param == "host" else DiskPlace(tmp_path)


def test_bytes_come_back_in_any_order(place: AbstractPlace) -> None:
    slots = {}
    for value, size in enumerate((7, 1, 30, 12)):
        slots[value] = size, place.take(storage(size, value))
    (size, slot) = slots.pop(1)
    assert slot is not None
    place.drop(slot)
    slots[4] = 5, place.take(storage(5, 4))

    for value in (3, 0, 4, 2):
        size, slot = slots[value]
        empty = storage(size, 255)
        assert slot is not None
        place.give(slot, empty)
        assert empty.tolist() == [value] * size
    place.close()


def test_host_memory_ends_at_its_budget_and_is_used_again() -> None:
    place = HostPlace(10)
    slot = place.take(storage(8, 1))

    assert slot is not None
    assert place.take(storage(3, 2)) is None
    assert place.take(storage(2, 3)) is not None
    place.give(slot, storage(8, 0))
    assert place.take(storage(8, 4)) is not None


def test_a_file_does_not_grow_while_it_has_room(tmp_path: Path) -> None:
    place = DiskPlace(tmp_path)
    for _ in range(20):
        slots = [(place.take(storage(size, 1)), size) for size in (300, 100, 200)]
        for slot, size in slots:
            place.give(slot, storage(size, 0))

    assert os.fstat(place._file.fileno()).st_size == 600
    place.close()


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(1, 20), st.integers(-10, -1))))
def test_stretches_that_are_taken_do_not_overlap(steps: list[int]) -> None:
    """A positive number is taken; a negative one frees the stretch at that place."""
    space, taken, most = _Space(), list[tuple[int, int]](), 0
    for step in steps:
        if step > 0:
            taken.append((space.take(step), step))
        elif taken:
            space.free(*taken.pop(step % len(taken)))
        most = max(most, sum(size for _, size in taken))
        places = [place for start, size in taken for place in range(start, start + size)]
        assert len(places) == len(set(places))
    for start, size in taken:
        space.free(start, size)
    assert space.take(1) == 0
