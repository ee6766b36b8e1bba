import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ColumnNotFoundError, PromptFileError, WhereError
from pipeline.prompts import blocks, select
from schemas.job import Range, Side
from tests.pipeline.prompts.tables import HARD_TEXTS, SUFFIXES, write_table


def texts(path, column="text", **side):
    return [t for prompts in select(Side(path=str(path), column=column, **side)) for t in prompts.texts.to_pylist()]


@pytest.fixture
def file(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def refusal(path, column="text", **side):
    with pytest.raises(PromptFileError) as caught:
        texts(path, column, **side)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"prompts cannot be read from {path}: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == sentence
    return sentence


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hard_texts_come_back_exactly(tmp_path, suffix):
    path = write_table(tmp_path / f"a{suffix}", [{"id": i, "text": text} for i, text in enumerate(HARD_TEXTS)])
    assert texts(path) == list(HARD_TEXTS)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("block_bytes", [16, 37, 1000])
def test_blocks_smaller_than_a_row_change_nothing(tmp_path, monkeypatch, suffix, block_bytes):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    long = [f'{i}, "{"x" * (i * 7 % 300)}"\n' for i in range(50)]
    path = write_table(tmp_path / f"a{suffix}", [{"id": i, "text": text} for i, text in enumerate(long)])
    assert texts(path) == long
    assert texts(path, where={"id": Range(min=10, max=12)}) == long[10:13]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_prompt_larger_than_a_block(tmp_path, suffix):
    rows = [{"text": "short"}, {"text": "long " * 1_000_000}, {"text": "short again"}]
    assert texts(write_table(tmp_path / f"a{suffix}", rows)) == [row["text"] for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_row_beyond_the_largest_block_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(blocks, "MAX_BLOCK_BYTES", 1024)
    path = write_table(tmp_path / f"a{suffix}", [{"text": "x"}, {"text": "y" * 5000}])
    assert "a row is longer than 1024 bytes, or a quote is never closed" in refusal(path)


def test_nulls_stay_nulls_and_blanks_stay_blanks(tmp_path):
    rows = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}]
    for suffix in (".parquet", ".jsonl"):
        assert texts(write_table(tmp_path / f"a{suffix}", rows)) == ["a", None, "", "b"]


def test_text_is_one_prompt_a_line(file):
    lines = ["", "one", "", '"quoted, not closed', "a\tb,c", "NA", "  ", "😀 日本", ""]
    assert texts(file("a.txt", "\n".join(lines) + "\n"), None) == lines
    assert texts(file("a.txt", "\r\n".join(lines) + "\r\n")) == lines
    assert texts(file("a.txt", "no newline at the end")) == ["no newline at the end"]
    assert texts(file("a.txt", b"\xef\xbb\xbfmarked\n")) == ["marked"]


def test_small_blocks_of_blank_lines(file, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4)
    assert texts(file("a.txt", "a\n\n\nb\n\nlonger line\n\n\n\n"), None) == [
        "a",
        "",
        "",
        "b",
        "",
        "longer line",
        "",
        "",
        "",
    ]


def test_text_has_no_other_column(file):
    with pytest.raises(ColumnNotFoundError, match=r"no column 'txt' in .*; wanted one of text; did you mean 'text'"):
        texts(file("a.txt", "x\n"), "txt")


@pytest.mark.parametrize("content", ['{"text": "x"}', '{"text": "x"}\n', '\n{"text": "x"}\n\n', '\ufeff{"text": "x"}'])
def test_json_of_one_line(file, content):
    assert texts(file("a.jsonl", content)) == ["x"]


def test_json_keys_may_come_late_and_unread_ones_may_hold_anything(file, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    rows = [{"text": f"{i}", "other": i} for i in range(20)]
    rows += [
        {"other": "text now", "text": "late", "score": 1},
        {"text": "last", "score": 0.5, "more": {"a": [1, None]}},
    ]
    path = file("a.json", "".join(json.dumps(row) + "\n" for row in rows))
    assert texts(path, where={"score": Range(min=0.5)}) == ["late", "last"]
    assert texts(path, where={"score": 1}) == ["late"]
    assert len(texts(path)) == 22


def test_a_json_array_is_refused_with_what_was_wanted(file):
    assert "line 1 holds a list; wanted one object a line" in refusal(file("a.json", '[{"text": "x"}]\n'))
    assert "line 1 is no JSON object; wanted one object a line" in refusal(file("a.json", '{\n"text": "x"\n}\n'))


def test_numbers_in_typed_columns_are_read_as_text(tmp_path, file):
    pq.write_table(pa.table({"text": pa.array([1, None, 3], pa.int8())}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["1", None, "3"]
    assert texts(file("a.jsonl", '{"text": 1}\n{"text": 20}\n')) == ["1", "20"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_every_arrow_type_of_text(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a", None, "b"]
    assert texts(tmp_path / "a.parquet", where={"text": "b"}) == ["b"]


def test_column_names_are_taken_as_they_are(tmp_path):
    rows = [{"a.b": "x", "a": "y", "c d": 1, "": "z"}]
    for suffix in (".parquet", ".jsonl", ".csv"):
        path = write_table(tmp_path / f"a{suffix}", rows)
        assert texts(path, "a.b", where={"c d": 1}) == ["x"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_column_names_the_nearest(tmp_path, suffix):
    path = write_table(tmp_path / f"a{suffix}", [{"comment": "x", "toxic": 1}])
    with pytest.raises(ColumnNotFoundError) as caught:
        texts(path, "coment")
    assert str(caught.value) == (f"no column 'coment' in {path}; wanted one of comment, toxic; did you mean 'comment'?")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(ColumnNotFoundError, match="did you mean 'toxic'"):
        texts(path, "comment", where={"toxix": 1})
    with pytest.raises(
        ColumnNotFoundError, match=r"no column was named for .*; add 'column:' with one of comment, toxic"
    ):
        texts(path, None)


def test_a_parquet_file_cut_short(tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"text": f"{i}" * 50} for i in range(100)])
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "wanted a whole file, in the format of its suffix" in refusal(path)


def test_damage_inside_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i}" * 50 for i in range(1000)]}), path, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    refusal(path)


def test_csv_with_ragged_rows(file):
    sentence = refusal(file("a.csv", "text,n\na,1\nb\n"))
    assert "Row #3: Expected 2 columns, got 1" in sentence
    assert "Row #2: Expected 2 columns, got 3" in refusal(file("a.tsv", "text\tn\na\t1\t2\n"))
    assert "it is empty; wanted a first row with the names of the columns" in refusal(file("a.csv", ""))


def test_a_quote_that_is_never_closed(file):
    refusal(file("a.csv", 'text,n\n"a,1\nb,2\nc,3\n'))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,n\nx,1\n\xff\xfe,2\n"),
        ("a.tsv", b"text\n\xc3\x28\n"),
        ("a.txt", b"fine\n\xff\n"),
        ("a.jsonl", b'{"text": "\xff"}\n'),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n'),
    ],
)
def test_invalid_utf8(file, name, content):
    assert "UTF" in refusal(file(name, content))


def test_invalid_utf8_in_parquet(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"])
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "its column 'text' is not UTF-8" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "line",
    ['{"text": "x"', '{"text": }', "x", "3", '{"text": "x"} {', '{"text": [1]}', '{"text": 1}', '{"text": "\\ud800"}'],
)
def test_malformed_json(file, line):
    refusal(file("a.jsonl", '{"text": "x"}\n' * 3 + line + "\n"))


def test_columns_that_are_no_text(tmp_path, file):
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "a.parquet")
    assert "its column 'text' holds list<element: string>; wanted text" in refusal(tmp_path / "a.parquet")
    assert "its column 'text' holds lists; wanted text" in refusal(file("a.jsonl", '{"text": ["a"]}\n'))


def test_two_columns_of_one_name(tmp_path, file):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet")
    assert "2 columns are named 'text'; wanted one" in refusal(file("a.csv", "text,text\na,b\n"))


def test_separator_of_text_files_within_a_prompt_is_refused_loudly(file):
    refusal(file("a.txt", "fine\nrecord\x1eseparator\n"))


def test_where_on_a_text_format_reads_the_cells_as_its_value(file):
    path = file("a.csv", "text,score,flag\na,1,true\nb, 0.5,FALSE\nc,,\nd,NA,1\ne,1.0,0\n")
    assert texts(path, where={"score": 1}) == ["a", "e"]
    assert texts(path, where={"score": Range(max=0.5)}) == ["b"]
    assert texts(path, where={"flag": True}) == ["a", "d"]
    assert texts(path, where={"score": "1"}) == ["a"]
    assert texts(path, where={"score": ""}) == ["c"]
    with pytest.raises(WhereError, match=r"column 'text' of .* holds text that is not double throughout.* with 3"):
        texts(path, where={"text": 3})
