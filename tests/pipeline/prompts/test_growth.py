import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import EmptySelectionError, GrowthError, StorageError
from pipeline.prompts import Snapshot, fingerprint, select, write_snapshot
from pipeline.prompts.growth import aligned
from pipeline.prompts.query import REMOVED, Prompts
from pipeline.storage import LocalStorage
from schemas.job import Side
from tests.pipeline.prompts.tables import write_table

HOLE = object()


def as_batches(texts, size):
    """Returns texts as prompts, with their places for rows."""
    return [
        Prompts(
            np.array([REMOVED if text is HOLE else start + i for i, text in enumerate(part)], np.int64),
            pa.array([None if text is HOLE else text for text in part], pa.large_string()),
        )
        for start in range(0, len(texts), size)
        for part in [texts[start : start + size]]
    ]


def as_pairs(batches):
    return [pair for b in batches for pair in zip(b.rows.tolist(), b.texts.to_pylist(), strict=True)]


def naive_alignment(earlier, selected):
    """Returns rows and texts by place: the longest start of the selection that is left of the earlier prompts."""

    def places(num):
        found, start = [], 0
        for text in selected[:num]:
            if text not in earlier[start:]:
                return None
            found.append(earlier.index(text, start))
            start = found[-1] + 1
        return found

    kept = next(found for num in range(len(selected), -1, -1) if (found := places(num)) is not None)
    rows = [kept.index(place) if place in kept else REMOVED for place in range(len(earlier))]
    aligned = [(row, selected[row] if row != REMOVED else None) for row in rows]
    return aligned + [(row, selected[row]) for row in range(len(kept), len(selected))]


# Few texts, so that many are equal, and all that a place can be: one that stays, one that goes, one that is empty.
TEXTS = st.sampled_from([None, "a", "b", "cc", ""])
PLACES = st.tuples(TEXTS, st.sampled_from(["stays", "stays", "goes", "empty"]))


@given(
    places=st.lists(PLACES, min_size=1, max_size=6) | st.lists(PLACES, min_size=6, max_size=30),
    appended=st.lists(TEXTS, max_size=9), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)  # fmt: skip
def test_alignment_equals_a_naive_one(places, appended, sizes):
    earlier = [HOLE if state == "empty" else text for text, state in places]
    kept = [text for text, state in places if state == "stays"]
    num_earlier = len(earlier) - earlier.count(HOLE)
    wanted = naive_alignment(earlier, kept + appended)
    lost = [i for i, text in enumerate(earlier) if text is not HOLE and wanted[i][0] == REMOVED]
    assert len(lost) <= num_earlier - len(kept)
    batches = aligned("RUN", num_earlier, as_batches(earlier, sizes[0]), as_batches(kept + appended, sizes[1]))
    if 2 * len(lost) > num_earlier:
        with pytest.raises(GrowthError) as caught:
            list(batches)
        assert (caught.value.num_earlier, caught.value.first) == (num_earlier, lost[0])
    else:
        assert as_pairs(batches) == wanted


@given(num=st.integers(1, 60), removed=st.sets(st.integers(0, 59)), num_appended=st.integers(0, 60))
def test_prompts_that_are_all_different_keep_their_places(num, removed, num_appended):
    texts = [f"{i}" for i in range(num + num_appended)]
    removed = set(sorted(removed & set(range(num)))[: num // 2])
    selected = [text for i, text in enumerate(texts) if i not in removed]
    found = as_pairs(aligned("RUN", num, as_batches(texts[:num], 7), as_batches(selected, 5)))
    assert [text for _, text in found] == [None if i in removed else text for i, text in enumerate(texts)]
    assert [row for row, _ in found if row != REMOVED] == list(range(len(selected)))


def test_neither_sequence_is_read_ahead():
    read = []

    def counted(name, batches):
        for batch in batches:
            read.append(name)
            yield batch

    texts = [f"{i}" for i in range(100)]
    walk = aligned("RUN", 50, counted("earlier", as_batches(texts[:50], 10)), counted("now", as_batches(texts, 10)))
    next(walk)
    assert sorted(read) == ["earlier", "now", "now"]


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: [*texts[:4], "new", *texts[5:]],
        lambda texts: [*texts[:4], "new", *texts[4:]],
        lambda texts: texts[::-1],
        lambda texts: texts[6:],
        lambda texts: [text.upper() for text in texts],
    ],
)
def test_what_does_not_go_on_is_refused(change):
    texts = [f"x{i}" for i in range(10)]
    with pytest.raises(GrowthError, match="of the 10 prompts in RUN more than half are not selected in that order now"):
        list(aligned("RUN", 10, as_batches(texts, 3), as_batches(change(texts), 4)))


def test_the_refusal_says_what_to_do_between_processes_too():
    error = GrowthError("RUN/prompts/source.parquet", 1234, 7)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error) == (
        "of the 1,234 prompts in RUN/prompts/source.parquet more than half are not selected in that order now, the "
        "first of them prompt 7 (from 0); wanted the same prompts in the same order, some of them removed, and new "
        "ones at the end only; mend the selection, or write no 'extends:' and fit in a new folder"
    )


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "run")


@pytest.fixture
def written(tmp_path):
    """Returns a function that writes texts into the same file, and returns the side that selects them."""

    def write(texts, **pick):
        path = write_table(tmp_path / "a.jsonl", [{"text": text, "k": 1} for text in texts])
        return Side(path=str(path), column="text", **pick)

    return write


def texts_of(snapshot):
    return [text for i in range(snapshot.num_units) for text in snapshot.unit(i)]


def test_appended_prompts_give_what_starting_over_gives(storage, written):
    texts = [None if i % 9 == 5 else f"{i % 40}" for i in range(100)]
    earlier = write_snapshot(written(texts[:70]), storage, "earlier", 16)
    side = written(texts)
    grown, fresh = (write_snapshot(side, storage, key, 16, run) for key, run in (("g", earlier), ("f", None)))
    assert storage.read("g") == storage.read("f")
    assert grown.contents == fresh.contents
    assert fingerprint(side, earlier) == fingerprint(side) == grown.facts
    assert [grown.digest(i) == earlier.digest(i) for i in range(5)] == [True] * 4 + [False]


def test_removed_prompts_leave_their_places_empty(storage, written):
    texts = [None if i == 3 else f"{i}" for i in range(40)]
    earlier = write_snapshot(written(texts), storage, "a", 8)
    removed = {1, 17, 18, 39}
    now = [text for i, text in enumerate(texts) if i not in removed] + ["new"]
    side = written(now)
    grown = write_snapshot(side, storage, "b", 8, earlier)
    assert texts_of(grown) == [None if i in removed else text for i, text in enumerate(texts)] + ["new"]
    assert [grown.removed(i).tolist() for i in range(6)] == [[1], [], [1, 2], [], [7], []]
    assert (grown.num_prompts, grown.facts.num_removed) == (41, 4)
    assert [grown.digest(i) == earlier.digest(i) for i in range(5)] == [False, True, False, True, False]
    assert grown.facts == fingerprint(side, earlier) == Snapshot.open(storage, "b").facts
    # A null in such a place is another prompt, and so are fewer places.
    nulls = written([None if i in removed else text for i, text in enumerate(texts)] + ["new"])
    assert len({grown.fingerprint, fingerprint(nulls).fingerprint, fingerprint(written(now)).fingerprint}) == 3
    assert list(grown.verify()) == []


def test_growth_goes_on_from_growth(storage, written):
    texts = [f"{i}" for i in range(20)]
    first = write_snapshot(written(texts), storage, "1", 8)
    second = write_snapshot(written(texts[6:]), storage, "2", 8, first)
    third = write_snapshot(written([*texts[6:13], "new"]), storage, "3", 8, second)
    assert texts_of(third) == [None] * 6 + texts[6:13] + [None] * 7 + ["new"]
    assert third.facts.num_removed == 13
    # Half of the 14 that were left could go, one more could not.
    with pytest.raises(GrowthError) as caught:
        fingerprint(written(texts[6:12]), second)
    assert (caught.value.num_earlier, caught.value.first) == (14, 12)
    # What was removed does not come back to its place.
    with pytest.raises(GrowthError):
        fingerprint(written(texts), second)


def test_limits_and_samples_go_on_where_their_prompts_do(storage, written):
    texts = [f"{i}" for i in range(1000)]
    limited = write_snapshot(written(texts, limit=100), storage, "limit", 16)
    assert fingerprint(written([*texts, "new"], limit=100), limited) == limited.facts
    assert fingerprint(written(texts, limit=150), limited) == fingerprint(written(texts, limit=150))
    drawn = write_snapshot(written(texts, sample=100), storage, "sample", 16)
    more = written([f"{i}" for i in range(1300)], sample=100)
    facts, new = fingerprint(more, drawn), sum(int((prompts.rows >= 1000).sum()) for prompts in select(more))
    assert 0 < new < 50
    assert (facts.num_prompts, facts.num_removed) == (100 + new, new)
    for side in (written(texts, sample=500), written(texts, sample=100, seed=1), written(texts[1:], sample=100)):
        with pytest.raises(GrowthError):
            fingerprint(side, drawn)


def test_refusals_write_nothing(storage, written):
    earlier = write_snapshot(written(["a", "b", "c"]), storage, "a", 2)
    keys = storage.keys()
    with pytest.raises(GrowthError):
        write_snapshot(written(["c", "b", "a"]), storage, "b", 2, earlier)
    with pytest.raises(EmptySelectionError):
        write_snapshot(written(["a"], where={"k": 2}), storage, "b", 2, earlier)
    assert storage.keys() == keys


def test_damage_of_the_earlier_prompts_is_found(storage, written):
    earlier = write_snapshot(written(["a", "b", "c"]), storage, "a", 2)
    data = bytearray(storage.read("a"))
    data[data.index(b"b")] ^= 1
    storage.write("a", bytes(data))
    with pytest.raises(StorageError):
        write_snapshot(written(["a", "b", "c", "d"]), storage, "b", 2, earlier)
    assert not Snapshot.exists(storage, "b")
