"""Prompt files that are bombs or otherwise odd: refused with the numbers, or read within bounds."""

import bz2
import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PromptFileError
from pipeline.prompts import blocks, select
from pipeline.prompts.delimited import MAX_COLUMNS
from schemas.job.prompts import Side

MIB = 1 << 20

#: What reading a file of any kind may take at once, here.
ROOM = 4 * MIB


#: Pools live as long as what was allocated in them.
_POOLS: list[pa.MemoryPool] = []


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Little room, so that small bombs do."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", MIB // 2)
    monkeypatch.setattr(blocks, "MAX_BLOCK_BYTES", ROOM)


def read(path, **side):
    """Reads all prompts; returns how many there are, and the most memory that Arrow had in use at a time."""
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    _POOLS.append(counting)
    pa.set_memory_pool(counting)
    try:
        num = sum(len(batch) for batch in select(Side(path=str(path), **{"column": "text"} | side)))
    finally:
        pa.set_memory_pool(before)
    return num, counting.max_memory()


def refusal(path, **side):
    with pytest.raises(PromptFileError) as caught:
        read(path, **side)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def dictionary(text, num_rows):
    """A column that holds one text once, for many rows."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([text]))


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_text_that_is_written_once_for_many_rows_takes_no_more_room(tmp_path, store_schema):
    path = tmp_path / "bomb.parquet"
    table = pa.table({"text": dictionary("x" * MIB, 200)})
    pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=store_schema)
    assert path.stat().st_size < 1000
    num, memory = read(path)
    assert num == 200
    assert memory < 12 * ROOM


def test_a_text_of_a_dictionary_that_has_no_room_alone_is_refused(tmp_path):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": dictionary("x" * (ROOM + 1), 3)}), path, write_statistics=False)
    assert f"a row is longer than {ROOM} bytes; mend that row" in refusal(path)


def test_a_row_that_is_said_to_have_no_room_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.parquet"
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": ["x" * 2 * ROOM]}), path, **options)
    assert path.stat().st_size < 20_000
    assert f"a row is longer than {ROOM} bytes" in refusal(path)


def test_long_rows_are_read_a_few_at_a_time(tmp_path):
    path = tmp_path / "long.parquet"
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "data_page_size": 1 << 16}
    pq.write_table(pa.table({"text": ["x" * (MIB // 16)] * 600}), path, **options)
    num, memory = read(path)
    assert num == 600
    assert memory < 12 * ROOM


@pytest.mark.parametrize("nested", [pa.list_(pa.string()), pa.struct({"a": pa.string()})])
def test_nested_prompts_are_refused(tmp_path, nested):
    path = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"text": pa.nulls(3, nested)}), path)
    assert "wanted text" in refusal(path)


def test_text_dictionaries_read_as_the_texts_that_they_stand_for(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array(["a", None, "b", "a", ""]).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "kind": texts, "n": [1, 2, 3, 4, 5]}), path)
    (batch,) = select(Side(path=str(path), column="text", where={"kind": ("a", "b"), "n": 4}))
    assert batch.texts.to_pylist() == ["a"]


def test_a_line_that_has_no_room_is_refused_and_not_read_to_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    for start in (b"", b'{"text": "first"}\n'):
        path.write_bytes(start + b'{"text": "' + b"x" * 3 * ROOM + b'"}\n')
        assert f"a row is longer than {ROOM} bytes" in refusal(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_a_cell_that_has_no_room_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"text\n" + b"x" * 3 * ROOM + b"\n")
    assert f"a row is longer than {ROOM} bytes" in refusal(path)


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [1000, 200_000])
def test_deep_nesting_is_refused_or_read_past(tmp_path, opened, depth):
    path = tmp_path / "a.jsonl"
    deep = opened * depth + b"1" + {b"[": b"]"}.get(opened, b"}") * depth
    path.write_bytes(b'{"text": "a"}\n{"text": "b", "other": ' + deep + b"}\n")
    assert read(path)[0] == 2
    for line in (b'{"text": ' + deep + b"}\n", b'{"text": "a"}\n{"text": ' + deep + b"}\n", opened * depth):
        path.write_bytes(line)
        refusal(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "\\ud800"}',
        b'{"text": "a", "text": "b"}',
        b'{"text": 1e999}',
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": "\xff"}',
        b'{"text": "a\x00b"}',
        b'{"text": ["a"]}',
        b"NaN",
        b"[]",
        b'"text"',
        b'{"text": "a"',
        b'{"text": "a"} {"text": "b"}x',
        b"\xff\xfe{\0",
    ],
)
def test_lines_that_are_no_rows_are_refused_wherever_they_stand(tmp_path, line):
    path = tmp_path / "a.jsonl"
    for start in (b"", b'{"text": "first"}\n'):
        path.write_bytes(start + line + b"\n")
        refusal(path)


@pytest.mark.parametrize("quote", [b"", b'"a\nb",', b'a"b,'])
def test_a_table_of_a_million_columns_is_refused_with_the_number(tmp_path, quote):
    path = tmp_path / "a.csv"
    path.write_bytes(quote + b"," * 1_000_000 + b"text\n" + b"," * 1_000_000 + b"x\n")
    assert f"columns or more; wanted at most {MAX_COLUMNS}" in refusal(path)


def test_as_many_columns_as_may_be_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"," * (MAX_COLUMNS - 1) + b"text\n" + b"," * (MAX_COLUMNS - 1) + b"x\n")
    assert read(path)[0] == 1


@pytest.mark.parametrize("header", [b"x" * (MIB // 4) + b",text", b'"' + b"x" * MIB, b"\n" * MIB + b",text"])
def test_a_first_row_that_is_no_names_is_refused(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"\na,b\n")
    refusal(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_files_are_not_unpacked(tmp_path, compress):
    data = compress(b'{"text": "a"}\n' * 1000)
    for name in ("a.jsonl.gz", "a.csv.bz2", "a.jsonl", "a.csv"):
        path = tmp_path / name
        path.write_bytes(data)
        refusal(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        refusal(tmp_path / name)
    refusal(tmp_path)


@pytest.mark.parametrize("where", [{"n": 1}, {"n": {"min": 0.5}}, {"n": "a"}, {"n": True}])
@pytest.mark.parametrize("value", ["9" * 30, "-" + "9" * 4000, "1e999", "[]", '{"a": 1}', '"x"'])
def test_conditions_on_odd_values_select_or_refuse(tmp_path, where, value):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "n": 1}}\n{{"text": "b", "n": {value}}}\n')
    try:
        read(path, where=where)
    except ValueError as refused:  # every InputError is one
        assert type(refused).__module__ == "pipeline.errors"  # noqa: PT017
        assert "\n" not in str(refused)  # noqa: PT017


def test_rows_of_any_text_come_back_as_they_were(tmp_path):
    from tests.hostile.strings import NASTY

    rows = [text for what, text in NASTY.items()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        (batch,) = select(Side(path=str(tmp_path / name), column="text"))
        assert batch.texts.to_pylist() == rows
