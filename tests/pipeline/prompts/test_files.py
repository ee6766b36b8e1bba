import pickle

import fsspec
import pytest

from pipeline.errors import InputError, PromptFileError, PromptFileNotFoundError
from pipeline.prompts import select
from pipeline.prompts.files import find_files
from schemas.job import Side
from tests.pipeline.prompts.tables import write_table


def names(path):
    return [file.path.rpartition("/")[2] for file in find_files(path)]


def texts(side):
    return [text for prompts in select(side) for text in prompts.texts.to_pylist()]


def test_a_folder_is_its_visible_files_by_name(tmp_path):
    for name in ("b.csv", "a.csv", "a10.csv", "a9.csv", "B.csv", ".hidden.csv", "_SUCCESS", "README.md", "_part.csv"):
        (tmp_path / name).write_text(f"text\n{name}\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.csv").write_text("text\nbelow\n")
    assert names(str(tmp_path)) == ["B.csv", "a.csv", "a10.csv", "a9.csv", "b.csv"]
    assert texts(Side(path=str(tmp_path), column="text")) == ["B.csv", "a.csv", "a10.csv", "a9.csv", "b.csv"]


def test_a_list_is_read_by_name_whatever_its_order(tmp_path):
    paths = []
    for folder, name in (("x", "2.txt"), ("y", "1.txt"), ("x", "1.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"{folder}{name}\n")
        paths.append(str(tmp_path / folder / name))
    assert texts(Side(path=tuple(paths))) == texts(Side(path=tuple(reversed(paths)))) == ["x1.txt", "y1.txt", "x2.txt"]


def test_names_are_taken_as_they_are(tmp_path):
    path = write_table(tmp_path / "100% a#b?c=d é.parquet", [{"text": "x"}])
    assert texts(Side(path=str(path), column="text")) == ["x"]
    assert texts(Side(path=str(tmp_path), column="text")) == ["x"]


def test_upper_case_suffix(tmp_path):
    (tmp_path / "A.TXT").write_text("x\n")
    assert texts(Side(path=str(tmp_path / "A.TXT"))) == ["x"]


def test_two_formats_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.tsv").write_text("text\nx\n")
    with pytest.raises(PromptFileError, match=r"a\.csv: it is CSV, but .*b\.tsv is TSV; wanted files of one format"):
        find_files(str(tmp_path))


def test_a_file_named_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(PromptFileError, match=r"a\.txt: it is named twice"):
        find_files((str(tmp_path / "a.txt"), str(tmp_path / "a.txt")))


def test_a_missing_file_shows_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptFileNotFoundError) as caught:
        find_files("data/a.csv")
    assert str(caught.value) == (
        f"no prompt file or folder at {tmp_path}/data/a.csv; relative paths start at the folder of the spec"
    )
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, InputError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["a.md", "a", "a.csv.gz"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(PromptFileError, match=r"wanted a folder, or a file with one of the suffixes \.parquet \.pq"):
        find_files(str(tmp_path / name))


def test_a_folder_without_prompts_is_refused(tmp_path):
    (tmp_path / ".a.csv").write_text("x")
    with pytest.raises(PromptFileError, match="the folder itself has no file with one of the suffixes"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv"])
def test_urls_go_through_fsspec(tmp_path, suffix):
    rows = [{"text": f"{i} é\n"} for i in range(10)]
    path = write_table(tmp_path / f"a{suffix}", rows)
    remote = fsspec.filesystem("memory")
    remote.pipe(f"/{tmp_path.name}/a{suffix}", path.read_bytes())
    for url in (f"memory://{tmp_path.name}/a{suffix}", f"memory://{tmp_path.name}"):
        assert texts(Side(path=url, column="text")) == [row["text"] for row in rows]
    with pytest.raises(PromptFileNotFoundError, match=f"memory://{tmp_path.name}/b"):
        find_files(f"memory://{tmp_path.name}/b.csv")


def test_a_url_that_nobody_can_open(tmp_path):
    with pytest.raises(PromptFileError, match=r"nobody://bucket/a.csv: Protocol not known: nobody"):
        find_files("nobody://bucket/a.csv")
