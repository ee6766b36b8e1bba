import collections
import gc
import hashlib
import io
import os
import pickle

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DamagedRunError, EmptySelectionError, PromptFileError, StoreError
from pipeline.prompts import Snapshot, fingerprint, select, write_snapshot
from pipeline.prompts.snapshot import Contents
from pipeline.storage import LocalStorage
from schemas import record
from schemas.job import Side
from schemas.plan import SideFacts
from tests.pipeline.prompts.tables import HARD_TEXTS, write_table


@pytest.fixture
def side(tmp_path):
    rows = [{"text": f"{i} " + "y" * 500, "even": i % 2 == 0} for i in range(4000)]
    path = write_table(tmp_path / "a.parquet", rows, row_group_size=700)
    return Side(path=str(path), column="text", where={"even": True})


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "run")


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


@settings(max_examples=30)
@given(unit_size=st.integers(1, 50), num_prompts=st.integers(1, 80), num_files=st.integers(1, 3))
def test_units_hold_every_prompt_once_in_order(tmp_path_factory, unit_size, num_prompts, num_files):
    folder = tmp_path_factory.mktemp("files")
    texts = [[HARD_TEXTS[(i + j) % len(HARD_TEXTS)] for j in range(num_prompts)] for i in range(num_files)]
    for i, column in enumerate(texts):
        write_table(folder / f"{i}.jsonl", [{"text": None if j == 7 else text} for j, text in enumerate(column)])
    side = Side(path=str(folder), column="text")
    snapshot = write_snapshot(side, LocalStorage(folder / "run"), "snapshot", unit_size)
    wanted = [None if j == 7 else text for column in texts for j, text in enumerate(column)]
    units = [snapshot.unit(i) for i in range(snapshot.num_units)]
    assert [text for unit in units for text in unit] == wanted
    assert {len(unit) for unit in units[:-1]} <= {unit_size}
    assert 1 <= len(units[-1]) <= unit_size
    assert snapshot.facts == fingerprint(side)
    assert list(snapshot.verify()) == []
    assert [text for batch in snapshot.batches() for text in batch.texts.to_pylist()] == wanted


def test_a_snapshot_is_the_same_when_opened_again(side, storage):
    written = write_snapshot(side, storage, "prompts/source.parquet", 512)
    opened = Snapshot.open(storage, "prompts/source.parquet")
    assert opened.contents == written.contents
    assert (opened.num_prompts, opened.num_units, opened.fingerprint) == (2000, 4, fingerprint(side).fingerprint)
    assert opened.unit(3) == written.unit(3)
    assert len(opened.unit(3)) == 2000 - 3 * 512
    assert opened.removed(3).tolist() == []
    assert storage.keys() == ["prompts/source.parquet", "prompts/source.parquet.json"]


def test_it_is_parquet_with_the_places_of_the_rows(side, storage, tmp_path):
    write_snapshot(side, storage, "s", 512)
    table = pq.read_table(tmp_path / "run" / "s")
    assert [(field.name, str(field.type)) for field in table.schema] == [("row", "int64"), ("prompt", "large_string")]
    assert table.column("row").to_pylist() == list(range(0, 4000, 2))


def test_fingerprint_ignores_the_unit_size_and_bytes_are_reproducible(side, storage):
    keys = [f"{size}-{turn}" for size in (16, 100, 5000) for turn in (0, 1)]
    snapshots = [write_snapshot(side, storage, key, int(key.split("-")[0])) for key in keys]
    assert {s.fingerprint for s in snapshots} == {fingerprint(side).fingerprint}
    assert storage.read("100-0") == storage.read("100-1")
    assert storage.read("100-0.json") == storage.read("100-1.json")


def test_a_unit_is_addressed_by_its_prompts_alone(storage, tmp_path):
    texts = ["a", "é\n", "", "a", "é\n", "x", "a"]
    one = write_table(tmp_path / "1.csv", [{"text": text, "k": 1} for text in texts])
    snapshot = write_snapshot(Side(path=str(one), column="text"), storage, "s", 2)
    parts = [b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in t) for t in (texts[:2], "a")]
    assert [snapshot.digest(i) for i in (0, 3)] == [hashlib.sha256(part).hexdigest() for part in parts]
    assert len({snapshot.digest(i) for i in range(4)}) == 4
    turned = write_table(tmp_path / "2.jsonl", [{"text": text} for text in ["z", "z", *texts[:2]]])
    assert write_snapshot(Side(path=str(turned), column="text"), storage, "t", 2).digest(1) == snapshot.digest(0)


def test_reading_a_unit_reads_only_its_own_bytes(storage, tmp_path, monkeypatch):
    rows = [{"text": os.urandom(500).hex()} for _ in range(4000)]
    side = Side(path=str(write_table(tmp_path / "a.parquet", rows, row_group_size=1000)), column="text")
    size = write_snapshot(side, storage, "s", 50).contents.size
    snapshot = Snapshot.open(storage, "s")
    monkeypatch.setattr(LocalStorage, "open", lambda self, key: CountedFile(self.root / key))
    monkeypatch.setattr(CountedFile, "num_read", 0)
    assert snapshot.unit(40) == [row["text"] for row in rows[2000:2050]]
    assert size / 100 < CountedFile.num_read < size / 40


def test_an_opened_snapshot_is_freed_without_the_collector(side, storage):
    write_snapshot(side, storage, "s", 512)
    gc.collect()
    gc.disable()
    try:
        Snapshot.open(storage, "s").unit(0)
        assert not [thing for thing in gc.get_objects() if issubclass(type(thing), pq.FileMetaData)]
        opened = Snapshot.open(storage, "s")
        assert opened.metadata in [thing for thing in gc.get_objects() if issubclass(type(thing), pq.FileMetaData)]
    finally:
        gc.enable()


def test_a_unit_that_is_not_there(side, storage):
    snapshot = write_snapshot(side, storage, "s", 512)
    for index in (-1, 4):
        for ask in (snapshot.unit, snapshot.removed, snapshot.digest):
            with pytest.raises(IndexError, match=f"no unit {index}: .* has 4"):
                ask(index)


def test_refused_prompts_leave_nothing_behind(storage, tmp_path):
    write_table(tmp_path / "1.csv", [{"text": f"{i}"} for i in range(100)])
    with pytest.raises(EmptySelectionError):
        write_snapshot(Side(path=str(tmp_path / "1.csv"), column="text", where={"text": "x"}), storage, "s", 10)
    (tmp_path / "2.csv").write_text("text,n\nragged\n")
    with pytest.raises(PromptFileError):
        write_snapshot(Side(path=str(tmp_path), column="text"), storage, "s", 10)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_failure_leaves_the_snapshot_that_was_there(side, storage, tmp_path):
    before = write_snapshot(side, storage, "s", 512)
    (tmp_path / "bad.csv").write_text("text,n\nragged\n")
    with pytest.raises(PromptFileError):
        write_snapshot(Side(path=str(tmp_path / "bad.csv"), column="text"), storage, "s", 512)
    assert Snapshot.open(storage, "s").contents == before.contents
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["s", "s.json"]


def test_a_record_never_stands_beside_a_file_that_it_was_not_written_for(side, storage, monkeypatch):
    before = write_snapshot(side, storage, "s", 512)

    def refuse(self, key, data):
        raise StoreError(key, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", refuse)
        with pytest.raises(StoreError):
            write_snapshot(side, storage, "s", 100)
    assert storage.exists("s")
    assert not Snapshot.exists(storage, "s")
    with pytest.raises(DamagedRunError):
        Snapshot.open(storage, "s")
    assert write_snapshot(side, storage, "s", 512).contents == before.contents
    assert Snapshot.exists(storage, "s")


def read_all(storage):
    """Returns the damaged units, and the prompts of the others by unit."""
    snapshot = Snapshot.open(storage, "s")
    damaged = list(snapshot.verify())
    return damaged, {i: snapshot.unit(i) for i in range(snapshot.num_units) if i not in damaged}


@pytest.mark.slow
def test_any_flipped_byte_is_found(storage, tmp_path):
    path = write_table(tmp_path / "a.csv", [{"text": f"é {i} {os.urandom(3).hex()}"} for i in range(3)])
    written = write_snapshot(Side(path=str(path), column="text"), storage, "s", 2)
    wanted = {i: written.unit(i) for i in range(2)}
    found = collections.Counter[int | str]()
    for key in ("s", "s.json"):
        whole = storage.read(key)
        for place in range(len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            (tmp_path / "run" / key).write_bytes(data)
            try:
                damaged, units = read_all(storage)
                assert damaged, (key, place)
                assert units.items() <= wanted.items()
                found.update(damaged)
            except DamagedRunError:
                found[key] += 1
        (tmp_path / "run" / key).write_bytes(whole)
    assert found["s.json"] == storage.size("s.json")
    assert min(found[i] for i in ("s", 0, 1)) > 20
    assert read_all(storage) == ([], wanted)


def test_verify_names_the_damaged_units(side, storage):
    snapshot = write_snapshot(side, storage, "s", 64)
    data = bytearray(storage.read("s"))
    for index in (3, 17, 31):
        data[snapshot.metadata.row_group(index).column(1).data_page_offset + 60] ^= 16
    storage.write("s", bytes(data))
    assert list(Snapshot.open(storage, "s").verify()) == [3, 17, 31]
    storage.delete("s")
    assert list(snapshot.verify()) == list(range(32))


def test_verify_finds_bytes_that_hold_no_prompt(side, storage):
    snapshot = write_snapshot(side, storage, "s", 64)
    storage.write("s", b"X" + storage.read("s")[1:])
    with pytest.raises(DamagedRunError, match="a byte beside its prompts is not as it was written"):
        list(snapshot.verify())


def test_a_snapshot_of_other_prompts_is_found(side, storage):
    write_snapshot(side, storage, "s", 512)
    write_snapshot(side.model_copy(update={"where": {"even": False}}), storage, "t", 512)
    storage.take("s", storage, "t")
    with pytest.raises(DamagedRunError, match="the prompts of unit 0 are not those that were written"):
        Snapshot.open(storage, "s").unit(0)
    for unit_size in (500, 10):  # as many units, and more
        write_snapshot(side, storage, "t", unit_size)
        storage.take("s", storage, "t")
        with pytest.raises(DamagedRunError, match="it is not the file that its record was written for"):
            Snapshot.open(storage, "s")


@pytest.mark.parametrize(("unit_size", "digests"), [(0, b""), (-1, b""), (2, bytes(32)), (1, bytes(95)), (1, b"")])
def test_a_record_whose_numbers_do_not_fit_is_refused(side, storage, unit_size, digests):
    write_snapshot(side, storage, "s", 512)
    fields = {"side": SideFacts(3, "0" * 64), "unit_size": unit_size, "digests": digests, "size": 1, "crc32c": 1}
    hostile = record.seal(fields)
    storage.write("s.json", hostile)
    with pytest.raises(DamagedRunError, match=f"for 3 prompts in units of {unit_size}"):
        Snapshot.open(storage, "s")


def test_what_is_no_snapshot(side, storage, tmp_path):
    with pytest.raises(DamagedRunError):
        Snapshot.open(storage, "s")
    write_snapshot(side, storage, "s", 512)
    storage.write("s", storage.read("s")[:-9])
    with pytest.raises(DamagedRunError):
        Snapshot.open(storage, "s")
    storage.delete("s")
    with pytest.raises(DamagedRunError):
        Snapshot.open(storage, "s")
    storage.write("s.json", record.dump({"version": 1}))
    with pytest.raises(DamagedRunError):
        Snapshot.open(storage, "s")


def test_a_record_is_no_larger_than_its_digests_need(storage, tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"text": f"{i}"} for i in range(1000)], row_group_size=1000)
    snapshot = write_snapshot(Side(path=str(path), column="text"), storage, "s", 1)
    assert storage.size("s.json") < 1000 * 43 + 1000
    contents = pickle.loads(pickle.dumps(snapshot.contents))
    assert record.unseal(Contents, record.seal(contents)) == contents


def test_nothing_is_selected_twice_over_a_huge_unit(side, storage):
    snapshot = write_snapshot(side, storage, "s", 10**9)
    assert snapshot.num_units == 1
    assert snapshot.unit(0) == [text for prompts in select(side) for text in prompts.texts.to_pylist()]
