"""What is true of every storage. A new kind passes `StorageConformance`, or is none."""

import pickle
import secrets
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import google_crc32c
import pytest

from pipeline.errors import StorageKeyError
from pipeline.storage import AbstractStorage

BAD_KEYS = (
    "",
    ".",
    "..",
    "../x",
    "/x",
    "x/",
    "a//b",
    "a/./b",
    "a/../b",
    "a\0b",
    "a\\..\\b",
    ".x.json.12.abcd.partial",
    "a/.x.json.12.abcd.partial/b",
    ".first-wins.partial",
)
RACERS = 6


class StorageConformance(ABC):
    """What is true of a storage, wherever it is."""

    @abstractmethod
    @pytest.fixture
    def storage(self) -> AbstractStorage:
        """An empty storage."""

    def test_a_file_is_read_as_it_was_written(self, storage):
        data = secrets.token_bytes(100_000)
        storage.write("receipts/source/00000003.json", data)
        storage.write("empty", b"")
        storage.note("crumbs/1", b"here")
        assert storage.read("receipts/source/00000003.json") == data
        assert storage.read("empty") == b""
        assert storage.read("crumbs/1") == b"here"
        assert storage.size("receipts/source/00000003.json") == len(data)
        assert storage.size("empty") == 0
        assert storage.place("empty") == f"{storage.uri}/empty"

    def test_the_last_writer_wins(self, storage):
        for write in (storage.write, storage.note, storage.write):
            write("CURRENT", b"the first, which is longer")
            write("CURRENT", b"the last")
            assert storage.read("CURRENT") == b"the last"

    def test_the_first_creator_wins(self, storage):
        assert storage.create("lease/1", b"mine")
        assert not storage.create("lease/1", b"theirs")
        assert storage.read("lease/1") == b"mine"
        storage.delete("lease/1")
        assert storage.create("lease/1", b"theirs")

    def test_one_of_racing_threads_wins(self, storage):
        if not storage.guarantees.first_wins:
            pytest.skip("it does not say so")
        start = Barrier(RACERS)

        def race(racer):
            start.wait()
            return [storage.create(f"race/{name}", b"%d" % racer) for name in range(4)]

        with ThreadPoolExecutor(RACERS) as threads:
            won = list(threads.map(race, range(RACERS)))
        for name in range(4):
            winners = [racer for racer in range(RACERS) if won[racer][name]]
            assert [b"%d" % racer for racer in winners] == [storage.read(f"race/{name}")]

    def test_ranges_end_with_the_file(self, storage):
        storage.write("a", b"0123456789")
        assert storage.read_range("a", 0, 4) == b"0123"
        assert storage.read_range("a", 7, 99) == b"789"
        assert storage.read_range("a", 4, 4) == b""
        assert storage.read_range("a", 10, 12) == b""
        assert storage.read_range("a", 50, 60) == b""

    def test_what_is_not_there_is_not_found(self, storage):
        storage.write("a/b", b"1")
        for missing in ("x", "a", "a/c", "a/b/c", "x/y"):
            assert not storage.exists(missing)
        storage.delete("x/y")
        for missing in ("x", "a/c"):
            for ask in (storage.read, storage.size, storage.measure, storage.open):
                with pytest.raises(FileNotFoundError):
                    ask(missing)
            for start, stop in ((0, 1), (3, 3)):
                with pytest.raises(FileNotFoundError):
                    storage.read_range(missing, start, stop)
            with pytest.raises(FileNotFoundError):
                storage.take("copy", storage, missing)
        assert storage.keys() == ["a/b"]

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_bad_key_is_refused_by_all(self, storage, key):
        def stream():
            with storage.writing(key):
                pass

        calls = (
            lambda: storage.read(key),
            lambda: storage.read_range(key, 0, 1),
            lambda: storage.read_range(key, 1, 1),
            lambda: storage.size(key),
            lambda: storage.exists(key),
            lambda: storage.write(key, b"x"),
            lambda: storage.create(key, b"x"),
            lambda: storage.note(key, b"x"),
            lambda: storage.delete(key),
            lambda: storage.delete_all(key),
            lambda: storage.measure(key),
            lambda: storage.open(key),
            lambda: storage.take(key, storage, "a"),
            lambda: storage.take("b", storage, key),
            stream,
        )
        storage.write("a", b"1")
        for call in calls:
            with pytest.raises(StorageKeyError):
                call()
        assert storage.keys() == ["a"]

    def test_keys_are_those_of_a_folder(self, storage):
        assert storage.keys() == []
        names = ["a/b/2", "a/b/10", "a/c", "ab/d", "a.json"]
        for name in names:
            storage.write(name, b"x")
        assert storage.keys() == sorted(names)
        assert storage.keys("a") == ["a/b/10", "a/b/2", "a/c"]
        assert storage.keys("a/b") == ["a/b/10", "a/b/2"]
        assert storage.keys("a/c") == storage.keys("nothing") == []
        assert storage.names() == ["a", "a.json", "ab"]

    def test_another_object_of_the_same_place_sees_all(self, storage):
        """Also in another thread, which has connections and listings of its own."""
        other = pickle.loads(pickle.dumps(storage))
        assert (other.uri, other.guarantees) == (storage.uri, storage.guarantees)
        with ThreadPoolExecutor(1) as thread:
            assert (other.keys(), other.exists("a/1")) == ([], False)
            thread.submit(storage.write, "a/1", b"here").result()
            assert (other.keys("a"), other.size("a/1"), other.read("a/1")) == (["a/1"], 4, b"here")
            thread.submit(storage.write, "a/1", b"here and now").result()
            assert (other.size("a/1"), other.read("a/1")) == (12, b"here and now")
            thread.submit(storage.delete, "a/1").result()
            assert (other.keys(), other.exists("a/1")) == ([], False)

    def test_names_with_signs_of_patterns_are_only_names(self, storage):
        for name in ("a/*", "a/?", "a/[12]", "a/1"):
            storage.write(name, name.encode())
        storage.delete("a/*")
        assert storage.keys() == ["a/1", "a/?", "a/[12]"]
        assert storage.read("a/[12]") == b"a/[12]"
        storage.write("[x]/1", b"")
        storage.write("x/1", b"")
        storage.delete_all("[x]")
        assert storage.keys("x") == ["x/1"]

    def test_deleting_a_folder_leaves_its_neighbours(self, storage):
        for name in ("a/b/1", "a/b/2", "a/bc", "a/1"):
            storage.write(name, b"x")
        storage.delete_all("a/b")
        storage.delete_all("nothing")
        assert storage.keys() == ["a/1", "a/bc"]

    def test_a_place_with_a_file_in_it_is_not_removed(self, storage):
        storage.remove_if_empty()
        storage.write("a/b", b"1")
        storage.remove_if_empty()
        assert storage.read("a/b") == b"1"
        storage.delete_all("a")
        storage.remove_if_empty()
        assert storage.keys() == []
        storage.write("a/b", b"2")
        assert storage.read("a/b") == b"2"

    def test_an_open_file_is_read_from_any_place(self, storage):
        data = secrets.token_bytes(300_000)
        storage.write("a", data)
        with storage.open("a") as file, storage.open("a") as second:
            assert file.seekable()
            assert file.seek(-10, 2) == len(data) - 10
            assert file.read() == data[-10:]
            assert file.read(5) == b""
            assert second.read(5) == data[:5]
            file.seek(1000)
            assert file.read(2000) == data[1000:3000]
            assert file.tell() == 3000
            file.seek(-1000, 1)
            assert file.read(1) == data[2000:2001]
            assert second.read() == data[5:]

    def test_a_measure_is_that_of_the_bytes(self, storage):
        data = secrets.token_bytes(70_001)
        storage.write("a", data)
        assert storage.measure("a") == (70_001, google_crc32c.value(data))
        storage.write("empty", b"")
        assert storage.measure("empty") == (0, 0)

    def test_a_stream_becomes_a_file_at_its_end(self, storage):
        data = secrets.token_bytes(200_000)
        with storage.writing("a/b") as file:
            for start in range(0, len(data), 30_000):
                file.write(data[start : start + 30_000])
            assert file.tell() == len(data)
            assert not storage.exists("a/b")
            assert storage.keys() == []
        assert storage.read("a/b") == data
        with storage.writing("a/b") as file:
            file.write(b"anew")
            assert storage.read("a/b") == data
        assert storage.read("a/b") == b"anew"
        with storage.writing("nothing"):
            pass
        assert storage.read("nothing") == b""

    def test_a_stream_that_fails_leaves_nothing(self, storage):
        storage.write("old", b"old")

        def stream(key):
            with storage.writing(key) as file:
                file.write(b"new")
                raise KeyError(key)

        for key in ("new", "old"):
            with pytest.raises(KeyError):
                stream(key)
        assert storage.keys() == ["old"]
        assert storage.read("old") == b"old"

    def test_a_copy_outlives_what_it_was_taken_from(self, storage):
        storage.write("a", b"1")
        storage.write("c", b"replaced")
        storage.take("b", storage, "a")
        storage.take("c", storage, "a")
        storage.write("a", b"2")
        storage.delete("a")
        assert (storage.read("b"), storage.read("c")) == (b"1", b"1")

    def test_sweeping_takes_no_file(self, storage):
        storage.write("a/b", b"1")
        storage.create("c", b"2")
        storage.sweep(but="lease")
        assert storage.keys() == ["a/b", "c"]
