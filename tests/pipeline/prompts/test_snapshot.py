import gc
import io
import os
from pathlib import Path, PosixPath

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedRunError, EmptySelectionError, PromptFileError
from pipeline.prompts import Snapshot, fingerprint, select, write_snapshot
from schemas.job import Side
from tests.pipeline.prompts.tables import HARD_TEXTS, write_table


@pytest.fixture
def side(tmp_path):
    rows = [{"text": f"{i} " + "y" * 500, "even": i % 2 == 0} for i in range(4000)]
    path = write_table(tmp_path / "a.parquet", rows, row_group_size=700)
    return Side(path=str(path), column="text", where={"even": True})


class CountedFile(io.FileIO):
    num_read = 0

    def read(self, size=-1):
        data = super().read(size)
        CountedFile.num_read += len(data)
        return data

    def readinto(self, buffer):
        size = super().readinto(buffer)
        CountedFile.num_read += size
        return size


class CountedPath(PosixPath):
    def open(self, mode="r"):  # type: ignore[override]
        return CountedFile(str(self), mode)


@given(unit_size=st.integers(1, 50), num_prompts=st.integers(1, 120), num_files=st.integers(1, 3))
def test_units_hold_every_prompt_once_in_order(tmp_path_factory, unit_size, num_prompts, num_files):
    folder = tmp_path_factory.mktemp("files")
    texts = [[HARD_TEXTS[(i + j) % len(HARD_TEXTS)] for j in range(num_prompts)] for i in range(num_files)]
    for i, column in enumerate(texts):
        write_table(folder / f"{i}.jsonl", [{"text": None if j == 7 else text} for j, text in enumerate(column)])
    side = Side(path=str(folder), column="text")
    snapshot = write_snapshot(side, folder.with_suffix(".snapshot"), unit_size)
    wanted = [None if j == 7 else text for column in texts for j, text in enumerate(column)]
    units = [snapshot.unit(i) for i in range(snapshot.num_units)]
    assert [text for unit in units for text in unit] == wanted
    assert {len(unit) for unit in units[:-1]} <= {unit_size}
    assert 1 <= len(units[-1]) <= unit_size
    assert (snapshot.num_prompts, snapshot.fingerprint) == (len(wanted), fingerprint(side).fingerprint)


def test_a_snapshot_is_the_same_when_opened_again(side, tmp_path):
    written = write_snapshot(side, tmp_path / "source.snapshot", 512)
    opened = Snapshot.open(tmp_path / "source.snapshot")
    assert (opened.num_prompts, opened.num_units, opened.fingerprint) == (2000, 4, written.fingerprint)
    assert opened.unit(3) == written.unit(3)
    assert len(opened.unit(3)) == 2000 - 3 * 512


def test_it_is_parquet_with_the_places_of_the_rows(side, tmp_path):
    write_snapshot(side, tmp_path / "source.parquet", 512)
    table = pq.read_table(tmp_path / "source.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [("row", "int64"), ("prompt", "string")]
    assert table.column("row").to_pylist() == list(range(0, 4000, 2))


def test_fingerprint_ignores_the_unit_size_and_bytes_are_reproducible(side, tmp_path):
    names = [f"{size}-{turn}" for size in (1, 100, 5000) for turn in (0, 1)]
    snapshots = [write_snapshot(side, tmp_path / name, int(name.split("-")[0])) for name in names]
    assert {s.fingerprint for s in snapshots} == {fingerprint(side).fingerprint}
    assert (tmp_path / "100-0").read_bytes() == (tmp_path / "100-1").read_bytes()


def test_reading_a_unit_reads_only_its_own_bytes(tmp_path):
    rows = [{"text": os.urandom(500).hex()} for _ in range(4000)]
    side = Side(path=str(write_table(tmp_path / "a.parquet", rows, row_group_size=1000)), column="text")
    path = tmp_path / "source.snapshot"
    write_snapshot(side, path, 50)
    size = path.stat().st_size
    snapshot = Snapshot.open(CountedPath(path))
    CountedFile.num_read = 0
    assert snapshot.unit(40) == [row["text"] for row in rows[2000:2050]]
    assert size / 100 < CountedFile.num_read < size / 40


def test_an_opened_snapshot_is_freed_without_the_collector(side, tmp_path):
    write_snapshot(side, tmp_path / "s", 512)
    gc.collect()
    gc.disable()
    try:
        Snapshot.open(tmp_path / "s").unit(0)
        assert not [thing for thing in gc.get_objects() if issubclass(type(thing), pq.FileMetaData)]
        opened = Snapshot.open(tmp_path / "s")
        assert opened.metadata in [thing for thing in gc.get_objects() if issubclass(type(thing), pq.FileMetaData)]
    finally:
        gc.enable()


def test_a_unit_that_is_not_there(side, tmp_path):
    snapshot = write_snapshot(side, tmp_path / "s", 512)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"no unit {index}: .* has 4"):
            snapshot.unit(index)


def test_refused_prompts_leave_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_table(tmp_path / "1.csv", [{"text": f"{i}"} for i in range(100)])
    with pytest.raises(EmptySelectionError):
        write_snapshot(Side(path=str(tmp_path / "1.csv"), column="text", where={"text": "x"}), folder / "s", 10)
    (tmp_path / "2.csv").write_text("text,n\nragged\n")
    with pytest.raises(PromptFileError):
        write_snapshot(Side(path=str(tmp_path), column="text"), folder / "s", 10)
    assert list(folder.iterdir()) == []


def test_a_failure_leaves_the_snapshot_that_was_there(side, tmp_path):
    (tmp_path / "run").mkdir()
    before = write_snapshot(side, tmp_path / "run" / "s", 512)
    (tmp_path / "bad.csv").write_text("text,n\nragged\n")
    with pytest.raises(PromptFileError):
        write_snapshot(Side(path=str(tmp_path / "bad.csv"), column="text"), tmp_path / "run" / "s", 512)
    assert Snapshot.open(tmp_path / "run" / "s").fingerprint == before.fingerprint
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["s"]


def test_any_flipped_byte_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "s"
    write_table(tmp_path / "a.csv", [{"text": f"é {i} {os.urandom(9).hex()}"} for i in range(20)])
    written = write_snapshot(Side(path=str(tmp_path / "a.csv"), column="text"), path, 10)
    wanted = [written.unit(0), written.unit(1)]
    whole = path.read_bytes()
    num_found = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            snapshot = Snapshot.open(path)
            assert [snapshot.unit(i) for i in range(snapshot.num_units)] == wanted
            assert (snapshot.fingerprint, snapshot.num_prompts) == (written.fingerprint, 20)
        except DamagedRunError:
            num_found += 1
    assert num_found > len(whole) / 2


def test_what_is_no_snapshot(side, tmp_path):
    path = tmp_path / "s"
    with pytest.raises(DamagedRunError):
        Snapshot.open(path)
    write_snapshot(side, path, 512)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedRunError):
        Snapshot.open(path)
    with pytest.raises(DamagedRunError, match="it is no snapshot of prompts"):
        Snapshot.open(Path(side.path))


def test_nothing_is_selected_twice_over_a_huge_unit(side, tmp_path):
    snapshot = write_snapshot(side, tmp_path / "s", 10**9)
    assert snapshot.num_units == 1
    assert snapshot.unit(0) == [text for prompts in select(side) for text in prompts.texts.to_pylist()]
