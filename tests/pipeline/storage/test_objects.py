import errno
import logging
import secrets
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from pipeline.errors import StorageKeyError, StoreError
from pipeline.storage import Guarantees, LocalStorage, storage_at
from pipeline.storage import objects as module
from pipeline.storage.objects import ObjectStorage
from tests.pipeline.storage.conformance import StorageConformance


@pytest.fixture
def memory():
    return ObjectStorage(f"memory://{secrets.token_hex(4)}/run")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0, 0.0))


class TestMemory(StorageConformance):
    @pytest.fixture
    def storage(self, memory):
        return memory

    def test_it_says_what_it_guarantees(self, storage):
        assert storage.guarantees == Guarantees(first_wins=True, durable=False)

    def test_one_of_racing_threads_wins_where_looking_takes_time(self, storage, monkeypatch):
        exists = MemoryFileSystem.exists

        def slow(*args):
            there = exists(*args)
            time.sleep(0.002)
            return there

        monkeypatch.setattr(MemoryFileSystem, "exists", slow)
        self.test_one_of_racing_threads_wins(storage)


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket of a server on this machine."""
    why = "the tests of S3 need s3fs and moto[server]"
    s3fs, moto = pytest.importorskip("s3fs", reason=why), pytest.importorskip("moto.server", reason=why)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem().mkdir("bucket")
            yield "s3://bucket"
    finally:
        server.stop()


class TestS3(StorageConformance):
    @pytest.fixture
    def storage(self, s3):
        return ObjectStorage(f"{s3}/{secrets.token_hex(4)}")

    def test_it_is_found_to_honour_conditions(self, storage):
        assert storage.guarantees == Guarantees(first_wins=True, durable=True)
        assert storage.keys() == []

    def test_a_bucket_that_is_not_there_cannot_be_written(self, s3):
        storage = ObjectStorage("s3://no-such-bucket/run")
        with pytest.raises(StoreError, match="no-such-bucket/run/a cannot be written"):
            storage.write("a", b"1")
        with pytest.raises(FileNotFoundError):
            storage.read("a")

    def test_copies_go_between_kinds(self, storage, memory, tmp_path):
        disk = LocalStorage(tmp_path)
        disk.write("a", b"1")
        storage.take("b", disk, "a")
        memory.take("c", storage, "b")
        disk.take("d", memory, "c")
        assert disk.read("d") == b"1"


def test_a_url_is_shown_without_its_password():
    storage = ObjectStorage("memory://user:hush@place/run/")
    assert storage.uri == "memory://place/run"
    assert storage.place("a") == "memory://place/run/a"
    assert ObjectStorage("memory://container@account/run").uri == "memory://container@account/run"


def test_a_url_that_nothing_opens_is_refused():
    with pytest.raises(StorageKeyError, match="nowhere://x"):
        storage_at("nowhere://x")
    with pytest.raises(StorageKeyError, match="path"):
        ObjectStorage("file:///tmp/run")


class Troubled(MemoryFileSystem):  # type: ignore[misc]
    """A store that answers badly."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    troubles: list = []  # noqa: RUF012
    listed: dict = {}  # noqa: RUF012
    answers_lost = 0
    heeds_conditions = True

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("s3://", "memory://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if Troubled.troubles:
            raise Troubled.troubles.pop()
        super().pipe_file(path, value, mode=mode if Troubled.heeds_conditions else "overwrite", **kwargs)
        if Troubled.answers_lost and "partial" not in path:
            Troubled.answers_lost -= 1
            raise TimeoutError

    def find(self, path, **kwargs):
        return self.listed.setdefault(path, super().find(path))

    def invalidate_cache(self, path=None):
        self.listed.clear()

    def put_file(self, lpath, rpath, callback=None, mode="overwrite", **kwargs):
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())


@pytest.fixture
def troubled(monkeypatch):
    monkeypatch.setitem(_registry, "s3", Troubled)
    for name, value in {"troubles": [], "store": {}, "listed": {}, "answers_lost": 0, "heeds_conditions": True}.items():
        monkeypatch.setattr(Troubled, name, value)
    return ObjectStorage("s3://user:hush@bucket/run")


def writes(storage):
    """Each way to write a file."""

    def stream():
        with storage.writing("a") as file:
            file.write(b"1")

    return [
        lambda: storage.write("a", b"1"),
        lambda: storage.note("a", b"1"),
        lambda: storage.create("a", b"1"),
        stream,
    ]


@pytest.mark.parametrize("way", range(4))
def test_a_passing_trouble_passes(troubled, way):
    assert troubled.guarantees.first_wins
    Troubled.troubles += [TimeoutError(), OSError(errno.EBUSY, "slow down"), ConnectionResetError()]
    writes(troubled)[way]()
    assert troubled.read("a") == b"1"


@pytest.mark.parametrize("way", range(4))
def test_a_lasting_trouble_ends(troubled, way):
    assert troubled.guarantees.first_wins
    Troubled.troubles += [RuntimeError("s3://user:hush@bucket is down.")] * 50
    with pytest.raises(StoreError, match=r"s3://bucket/run/a cannot be \w+: s3://bucket is down; ") as caught:
        writes(troubled)[way]()
    assert "hush" not in str(caught.value)
    assert len(Troubled.troubles) == 46
    assert not troubled.exists("a")


@pytest.mark.parametrize("way", range(4))
def test_what_is_forbidden_is_not_tried_again(troubled, way):
    assert troubled.guarantees.first_wins
    Troubled.troubles += [PermissionError("no")] * 50
    with pytest.raises(StoreError, match="no"):
        writes(troubled)[way]()
    assert len(Troubled.troubles) == 49


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_a_put_whose_answer_was_lost_was_done(troubled, lost):
    Troubled.answers_lost = lost
    assert troubled.create("a", b"mine")
    Troubled.answers_lost = lost
    assert not troubled.create("a", b"theirs")
    assert troubled.read("a") == b"mine"


def test_a_listing_is_never_an_old_one(troubled):
    assert troubled.keys() == []
    troubled.write("a", b"1")
    assert troubled.keys() == ["a"]


def test_a_store_that_ignores_conditions_is_found_out(troubled):
    Troubled.heeds_conditions = False
    assert troubled.guarantees == Guarantees(first_wins=False, durable=True)
    assert troubled.create("a", b"mine")
    assert not troubled.create("a", b"theirs")
    assert troubled.read("a") == b"mine"
    assert troubled.keys() == ["a"]


def test_a_store_that_knows_no_conditions_is_found_out(troubled):
    Troubled.troubles = [OSError(errno.ENOSYS, "not implemented")]
    assert not troubled.guarantees.first_wins
    Troubled.troubles = [RuntimeError("down")] * 50
    with pytest.raises(StoreError, match="down"):
        ObjectStorage("s3://bucket/run").create("a", b"1")
