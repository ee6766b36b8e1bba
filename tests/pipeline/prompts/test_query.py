import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import EmptySelectionError, InputError
from pipeline.prompts import blocks, fingerprint, formats, query, select
from pipeline.prompts.draw import lots
from pipeline.prompts.query import REMOVED, Prompts, encoded, hashed_bytes
from schemas.job import Range, Side
from tests.pipeline.prompts.tables import SUFFIXES, write_table

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
ROW = st.fixed_dictionaries(
    {
        "id": st.integers(0, 3),
        "text": TEXTS,
        "score": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        "topic": st.sampled_from("abc"),
    }
)
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "score": st.builds(Range, min=st.sampled_from([0, 0.25]), max=st.sampled_from([0.5, 1, None])),
        "topic": st.sampled_from("abc") | st.just(("a", "c")),
    },
)
PICKS: st.SearchStrategy[dict[str, int]] = (
    st.just({})
    | st.builds(lambda n: {"limit": n}, st.integers(1, 30))
    | st.builds(lambda n, s: {"sample": n, "seed": s}, st.integers(1, 30), st.integers(-5, 2**70))
)


def mixed(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def naive_lot(row, seed):
    return mixed((mixed(seed % 2**64) + (row + 1) * 0x9E3779B97F4A7C15) % 2**64)


def naive_selection(rows, where, limit=None, sample=None, seed=0):
    """Returns the numbers of the selected rows."""

    def meets(value, condition):
        if isinstance(condition, Range):
            low, high = condition.min, condition.max
            return (low is None or value >= low) and (high is None or value <= high)
        return value in condition if isinstance(condition, tuple) else value == condition

    kept = [i for i, row in enumerate(rows) if all(meets(row[name], c) for name, c in where.items())]
    if sample is not None:
        return sorted(sorted(kept, key=lambda i: naive_lot(i, seed))[:sample])
    return kept[:limit]


def selection(side):
    batches = list(select(side))
    return [r for b in batches for r in b.rows.tolist()], [t for b in batches for t in b.texts.to_pylist()]


@given(
    files=st.lists(st.lists(ROW, min_size=1, max_size=20), min_size=1, max_size=3),
    suffix=st.sampled_from(SUFFIXES), where=CONDITIONS, pick=PICKS, block_bytes=st.sampled_from([50, 300, 1 << 20]),
)  # fmt: skip
def test_selection_equals_a_naive_one(tmp_path_factory, files, suffix, where, pick, block_bytes):
    folder = tmp_path_factory.mktemp("files")
    for i, rows in enumerate(files):
        write_table(folder / f"{i}{suffix}", rows, row_group_size=1 + i)
    rows = [row for rows in files for row in rows]
    wanted = naive_selection(rows, where, **pick)
    side = Side(path=str(folder), column="text", where=where, **pick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        patch.setattr(formats, "BATCH_ROWS", 4)
        patch.setattr(query, "_BATCH", 7)
        if not wanted:
            with pytest.raises(EmptySelectionError, match=f"none of the {len(rows)} rows"):
                selection(side)
            return
        assert selection(side) == (wanted, [rows[i]["text"] for i in wanted])
        facts = fingerprint(side)
    digest = hashlib.sha256()
    for i in wanted:
        data = rows[i]["text"].encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    assert (facts.num_prompts, facts.fingerprint) == (len(wanted), digest.hexdigest())


def test_lots_are_splitmix64():
    rows = np.array([0, 1, 2, 10**12])
    for seed in (0, 1, -1, 2**64 - 1, 12345):
        assert lots(rows, seed).tolist() == [naive_lot(int(row), seed) for row in rows]
    assert len(np.unique(lots(np.arange(100_000), 7))) == 100_000


def test_a_sample_is_spread_evenly_and_changes_with_the_seed(tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"text": f"{i}"} for i in range(20_000)], row_group_size=5000)
    rows = [np.array(selection(Side(path=str(path), column="text", sample=2000, seed=seed))[0]) for seed in (0, 1)]
    for drawn in rows:
        counts = np.histogram(drawn, bins=10, range=(0, 20_000))[0]
        # 200 a bin are expected; the deviation of a draw without replacement is below 14.
        assert (np.abs(counts - 200) < 70).all()
    shared = len(np.intersect1d(rows[0], rows[1]))
    assert abs(shared - 200) < 70


def test_a_larger_sample_holds_the_smaller_one(tmp_path):
    path = write_table(tmp_path / "a.csv", [{"text": f"{i}"} for i in range(1000)])
    small, large = (set(selection(Side(path=str(path), column="text", sample=n))[0]) for n in (10, 100))
    assert small < large


def test_a_sample_holds_no_more_than_it_needs(tmp_path):
    text = "x" * 1000
    path = write_table(tmp_path / "a.parquet", [{"text": text}] * 50_000, row_group_size=1000)
    side = Side(path=str(path), column="text", sample=100)
    before = pa.total_allocated_bytes()
    batches = select(side)
    prompts = next(batches)
    # 50 MB were read; the drawn prompts are 100 kB.
    assert len(prompts) == 100
    assert pa.total_allocated_bytes() - before < 2_000_000
    assert list(batches) == []


def test_reading_is_lazy(tmp_path):
    good = write_table(tmp_path / "1.csv", [{"text": "a"}, {"text": "b"}])
    (tmp_path / "2.csv").write_text("text,n\nragged\n")
    assert selection(Side(path=str(tmp_path), column="text", limit=2))[1] == ["a", "b"]
    with pytest.raises(InputError):
        selection(Side(path=str(tmp_path), column="text", limit=3))
    assert good.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    def peak(num_rows):
        rows = [{"text": "x" * 1000}] * (num_rows if suffix == ".parquet" else 1)
        path = write_table(tmp_path / f"{num_rows}{suffix}", rows, row_group_size=5000)
        if suffix != ".parquet":
            *head, line = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(head) + line * num_rows)
        before, peak = pa.total_allocated_bytes(), 0
        for _ in select(Side(path=str(path), column="text")):
            peak = max(peak, pa.total_allocated_bytes() - before)
        return peak

    # The files have 20 and 120 MB.
    assert peak(120_000) < peak(20_000) + 40_000_000


def test_fingerprint_ignores_format_and_file_names_but_not_order(tmp_path):
    rows = [{"text": text} for text in ("b", "a", "", "é\n😀")]
    facts = {fingerprint(Side(path=str(write_table(tmp_path / f"a{s}", rows)), column="text")) for s in SUFFIXES}
    facts.add(fingerprint(Side(path=str(write_table(tmp_path / "b.csv", rows)), column="text")))
    assert len(facts) == 1
    turned = write_table(tmp_path / "c.csv", rows[::-1])
    assert fingerprint(Side(path=str(turned), column="text")) not in facts


def test_fingerprint_tells_null_from_blank_and_where_prompts_end(tmp_path):
    tables: list[list[str | None]] = [["", "ab"], [None, "ab"], ["a", "b"], ["ab", ""], ["b", "a"]]
    prints = set()
    for i, table in enumerate(tables):
        path = write_table(tmp_path / f"{i}.jsonl", [{"text": text, "k": 1} for text in table])
        prints.add(fingerprint(Side(path=str(path), column="text")).fingerprint)
    assert len(prints) == len(tables)


@given(
    texts=st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=6)),
    removed=st.sets(st.integers(0, 20)), start=st.integers(0, 5), stop=st.integers(0, 20),
)  # fmt: skip
def test_hashed_bytes_are_lengths_and_texts(texts, removed, start, stop):
    """Also those of a part, whose buffers begin elsewhere."""
    start = min(start, len(texts))
    rows = np.array([REMOVED if i in removed else i for i in range(len(texts))], np.int64)
    texts = [None if i in removed else text for i, text in enumerate(texts)]
    wanted = [
        b"\xfe" + b"\xff" * 7 if i in removed
        else b"\xff" * 8 if text is None
        else len(text.encode()).to_bytes(8, "little") + text.encode()
        for i, text in enumerate(texts)
    ]  # fmt: skip
    prompts = Prompts(rows, pa.array(texts, pa.large_string()))
    assert bytes(hashed_bytes(encoded(prompts)[start:stop])) == b"".join(wanted[start:stop])
    assert bytes(hashed_bytes(encoded(prompts.slice(start, stop)))) == b"".join(wanted[start:stop])


def test_an_empty_selection_says_how_many_rows_and_why(tmp_path):
    path = write_table(tmp_path / "a.csv", [{"text": "x", "topic": "a"}] * 7)
    with pytest.raises(EmptySelectionError) as caught:
        fingerprint(Side(path=str(path), column="text", where={"topic": ("b", "c")}))
    assert str(caught.value) == (
        f'none of the 7 rows of {path} is selected by where: {{"topic": ["b", "c"]}}; '
        "loosen the conditions or correct their values"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", "text\n")]
)
def test_files_without_rows_select_nothing(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(EmptySelectionError, match="there are no rows; name files that have some"):
        fingerprint(Side(path=str(tmp_path), column="text"))
    (tmp_path / f"b{(tmp_path / name).suffix}").write_text('{"text": "x"}' if name == "a.jsonl" else "text\nx\n")
    assert fingerprint(Side(path=str(tmp_path), column="text", where={"text": "x"})).num_prompts == 1
