import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from pipeline.errors import StoreError
from pipeline.storage import Guarantees, LocalStorage, storage_at
from tests.pipeline.storage.conformance import StorageConformance


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs" / "one"


@pytest.fixture
def storage(root):
    return LocalStorage(root)


class TestLocal(StorageConformance):
    @pytest.fixture
    def storage(self, root):
        return LocalStorage(root)

    def test_it_says_what_it_guarantees(self, storage):
        assert storage.guarantees == Guarantees(first_wins=True, durable=True)


def test_a_path_is_a_local_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(storage_at("runs/one"), LocalStorage)
    assert storage_at("runs/one").uri == str(tmp_path / "runs" / "one")
    assert storage_at(tmp_path).uri == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_if_empty(storage, root):
    storage.write("a/b", b"1")
    storage.delete("a/b")
    storage.delete_all("a")
    storage.remove_if_empty()
    assert not root.exists()


RACE = """
import json, sys, time
from pathlib import Path
from pipeline.storage.local import LocalStorage
storage, won = LocalStorage(Path(sys.argv[1])), []
print("ready", flush=True)
start = float(sys.stdin.readline())
for name in range(50):
    while time.monotonic() < start + name * 0.003:
        pass
    won.append(storage.create(f"race/{name}", sys.argv[2].encode()))
print(json.dumps(won), flush=True)
"""


def test_one_of_racing_processes_wins(root):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(root), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"ready\n"
    start = f"{time.monotonic() + 0.05}\n".encode()
    with ThreadPoolExecutor(3) as threads:
        won = [json.loads(said) for said, _ in threads.map(lambda racer: racer.communicate(start, 60), racers)]
    storage = LocalStorage(root)
    for name in range(50):
        winners = [number for number in range(3) if won[number][name]]
        assert [str(number).encode() for number in winners] == [storage.read(f"race/{name}")]


def stream(storage, key, data):
    with storage.writing(key) as file:
        file.write(data)


WAYS = {"write": LocalStorage.write, "create": LocalStorage.create, "note": LocalStorage.note, "writing": stream}


@pytest.fixture
def outside(tmp_path):
    """A folder that is none of the run's, with one file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a").write_bytes(b"secret")
    return folder


def untouched(outside):
    return [path.name for path in outside.iterdir()] == ["a"] and (outside / "a").read_bytes() == b"secret"


READS = (
    LocalStorage.read,
    LocalStorage.size,
    LocalStorage.measure,
    LocalStorage.open,
    lambda storage, key: storage.read_range(key, 0, 3),
    lambda storage, key: storage.take("copy", storage, key),
)


@pytest.mark.parametrize("target", ["a", "not-there"])
def test_a_link_in_the_place_of_a_file_is_never_followed(storage, root, outside, target):
    storage.write("c", b"1")
    link = root / "a"
    link.symlink_to(outside / target)
    assert not storage.exists("a")
    assert storage.keys() == ["c"]
    for read in READS:
        with pytest.raises(StoreError, match="link"):
            read(storage, "a")
    assert not storage.create("a", b"x")
    for write in (LocalStorage.write, LocalStorage.note, stream):
        write(storage, "a", b"x")
        assert (storage.read("a"), link.is_symlink()) == (b"x", False)
        link.unlink()
        link.symlink_to(outside / target)
    storage.delete("a")
    assert not os.path.lexists(link)
    assert untouched(outside)


IN_A_FOLDER: tuple[Callable[..., object], ...] = (
    *READS,
    LocalStorage.exists,
    LocalStorage.delete,
    lambda storage, key: storage.take(key, storage, "c/1"),
    lambda storage, key: storage.delete_all(key.rpartition("/")[0]),
    lambda storage, key: storage.keys(key.rpartition("/")[0]),
    *(partial(lambda write, storage, key: write(storage, key, b"x"), write) for write in WAYS.values()),
)


@pytest.mark.parametrize("folder", ["b", "c/d"])
def test_a_link_in_the_place_of_a_folder_is_never_followed(storage, root, outside, folder):
    storage.write("c/1", b"1")
    (root / folder).symlink_to(outside)
    for touch in IN_A_FOLDER:
        with pytest.raises(StoreError, match="link"):
            touch(storage, f"{folder}/a")
    assert storage.keys() == ["c/1"]
    storage.delete_all("c")
    storage.sweep(but="lease")
    assert untouched(outside)


def test_a_link_in_the_place_of_a_temporary_is_never_followed(storage, root, outside, monkeypatch):
    monkeypatch.setattr("pipeline.storage.local.secrets.token_hex", lambda _: "abcd")
    for name, write in WAYS.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f".{name}.{os.getpid()}.abcd.partial").symlink_to(outside / "a")
        with pytest.raises(StoreError):
            write(storage, name, b"x")
        assert not storage.exists(name)
        assert untouched(outside)
    storage.sweep(but="lease")
    assert untouched(outside)


def test_leftovers_are_unseen_and_swept(storage, root, outside):
    storage.write("a/b", b"1")
    (root / "a" / ".b.7.abcd.partial").write_bytes(b"half")
    (root / ".folder.7.abcd.partial").mkdir()
    (root / ".folder.7.abcd.partial" / "x").write_bytes(b"half")
    (root / ".link.7.abcd.partial").symlink_to(outside)
    assert (storage.keys(), storage.names()) == (["a/b"], ["a"])
    storage.sweep(but="lease")
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["a", "a/b"]
    assert untouched(outside)


@pytest.fixture
def calls(monkeypatch):
    """The calls that change the disk, in order, each with the file or folder that it is about."""
    seen, names = [], {}

    def watch(name, about):
        real = getattr(os, name)

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if name == "open":
                names[result] = str(args[0])
            seen.append((name, about(*args)))
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("open", "unlink", "mkdir"):
        watch(name, lambda path, *_: str(path))
    for name in ("link", "replace"):
        watch(name, lambda _, path: str(path))
    for name in ("write", "fsync"):
        watch(name, lambda descriptor, *_: names[descriptor])
    return seen


@pytest.mark.parametrize("way", ["write", "create", "writing"])
def test_a_file_is_on_the_disk_before_it_is_seen(storage, root, calls, way):
    WAYS[way](storage, "a/b", b"1234")
    steps = [(name, "temporary" if path.endswith(".partial") else path) for name, path in calls if name != "open"]
    folder, file = str(root / "a"), str(root / "a" / "b")
    end = {"create": [("unlink", "temporary"), ("fsync", folder)]}.get(way, [("fsync", folder)])
    assert steps[:6] == [
        ("mkdir", str(root.parent)),
        ("fsync", str(root.parent.parent)),
        ("mkdir", str(root)),
        ("fsync", str(root.parent)),
        ("mkdir", folder),
        ("fsync", str(root)),
    ]
    publish = "link" if way == "create" else "replace"
    assert steps[6:9] == [("write", "temporary"), ("fsync", "temporary"), (publish, file)]
    assert sorted(steps[9:]) == sorted(end)


def test_who_lost_has_the_winners_file_on_the_disk_too(storage, root, calls):
    storage.create("a", b"1")
    calls.clear()
    assert not storage.create("a", b"2")
    assert ("fsync", str(root)) in calls


def test_a_copy_is_on_the_disk(storage, root, calls):
    storage.write("a", b"1")
    calls.clear()
    storage.take("b/c", storage, "a")
    published = calls.index(("replace", str(root / "b" / "c")))
    assert ("fsync", str(root)) in calls[:published]
    assert ("fsync", str(root / "b")) in calls[published:]


FAULTS = [
    (errno.ENOSPC, "write"),
    (errno.EFBIG, "write"),
    (errno.EIO, "write"),
    (errno.EIO, "fsync"),
    (errno.ENOSPC, "fsync"),
    (errno.EROFS, "open"),
    (errno.ENOSPC, "mkdir"),
    (errno.EXDEV, "publish"),
    (errno.EDQUOT, "publish"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("number", "step"), FAULTS, ids=lambda value: str(value))
def test_a_write_that_fails_shows_nothing(storage, root, monkeypatch, way, number, step):
    """And what a write fails to replace stays as it was."""
    storage.write("there/old", b"old")
    if step == "fsync" and way == "note":
        pytest.skip("a note is not flushed")
    name = {"publish": "link" if way == "create" else "replace"}.get(step, step)
    real = getattr(os, name)

    def fail(*args, **kwargs):
        if name == "open" and not int(args[1]) & os.O_CREAT:
            return real(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    for key in ("new/a",) if step == "mkdir" else ("new/a", "there/a", "there/old"):
        with pytest.raises(StoreError, match=os.strerror(number)) as caught:
            WAYS[way](storage, key, b"x" * 100)
        assert str(root / key) in str(caught.value)
        assert storage.keys() == ["there/old"]
    monkeypatch.undo()
    assert storage.read("there/old") == b"old"
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["old"]
    assert WAYS[way](storage, "new/a", b"x") in {None, True}
    assert storage.read("new/a") == b"x"


@pytest.mark.parametrize("way", ["write", "create", "writing"])
def test_writes_are_finished_when_the_system_takes_them_in_parts(storage, monkeypatch, way):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    WAYS[way](storage, "a", bytes(range(100)))
    assert storage.read("a") == bytes(range(100))


def test_a_read_that_fails_names_the_file(storage, root, monkeypatch):
    storage.write("a", b"1")
    (root / "folder").mkdir()

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "open", fail)
    for read in READS[:-1]:
        with pytest.raises(StoreError, match=f"{root}/a cannot be read: Input/output error"):
            read(storage, "a")


def test_a_pipe_is_no_file(storage, root):
    root.mkdir(parents=True)
    os.mkfifo(root / "a")
    for read in READS:
        with pytest.raises(StoreError, match="no file"):
            read(storage, "a")


def test_links_make_copies_cheap(storage, root, tmp_path):
    storage.write("a", b"1")
    other = LocalStorage(tmp_path / "other")
    other.take("b", storage, "a")
    assert (tmp_path / "other" / "b").stat().st_ino == (root / "a").stat().st_ino


def test_where_links_are_refused_bytes_are_copied(storage, root, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    storage.write("a", b"1")
    other = LocalStorage(tmp_path / "other")
    monkeypatch.setattr(os, "link", fail)
    other.take("b", storage, "a")
    assert other.read("b") == b"1"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["b"]


def test_a_copy_that_cannot_be_written_blames_its_own_place(storage, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.write("a", b"1")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match=f"{tmp_path}/other/b cannot be written: No space left on device"):
        LocalStorage(tmp_path / "other").take("b", storage, "a")
