import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from schemas import files

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publish_writes_and_replaces(tmp_path: Path) -> None:
    place = tmp_path / "state.json"
    files.publish(place, b"one")
    files.publish(place, b"two")
    assert place.read_bytes() == b"two"
    assert names(tmp_path) == ["state.json"]


def test_a_published_file_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.publish(tmp_path / "state.json", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place = tmp_path / "state.json"
    files.publish(place, b"old")
    refuse_at(step, monkeypatch)
    with pytest.raises(OSError, match="No space"):
        files.publish(place, b"new")
    assert place.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
def test_a_first_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    refuse_at(step, monkeypatch)
    with pytest.raises(OSError, match="No space"):
        files.publish_first(tmp_path / "receipt.json", b"new")
    assert names(tmp_path) == []


def refuse_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step != "write":
        monkeypatch.setattr(os, step, refuse)
        return
    real = os.fdopen

    def torn(descriptor: int, mode: str):
        file = real(descriptor, mode, buffering=0)
        file.write(b"ne")
        file.close()
        return refuse()

    monkeypatch.setattr(os, "fdopen", torn)


def test_of_many_racers_one_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    place, racers = tmp_path / "receipt.json", 8
    for turn in range(20):
        place.unlink(missing_ok=True)
        barrier = Barrier(racers)

        def race(racer: int, barrier: Barrier = barrier, turn: int = turn) -> bool:
            barrier.wait()
            return files.publish_first(place, f"{turn} {racer}".encode() * 1000)

        with ThreadPoolExecutor(racers) as pool:
            won = list(pool.map(race, range(racers)))
        assert sum(won) == 1
        assert place.read_bytes() == f"{turn} {won.index(True)}".encode() * 1000
    assert names(tmp_path) == ["receipt.json"]


def test_a_killed_writer_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from schemas import files
def die(*args): os.kill(os.getpid(), 9)
os.fsync = die
getattr(files, sys.argv[1])(Path(sys.argv[2]), {"a": b"1"} if sys.argv[1] == "publish_folder" else b"new")
"""
    for function in ("publish", "publish_first", "publish_folder"):
        done = subprocess.run([sys.executable, "-c", code, function, str(tmp_path / "file")], cwd=ROOT, check=False)
        assert done.returncode == -9
    assert all(name.startswith(".file.") and name.endswith(".partial") for name in names(tmp_path))
    assert len(names(tmp_path)) == 3
    assert files.publish_first(tmp_path / "file", b"again")


def test_staged_gives_a_place_beside_and_clears_it(tmp_path: Path) -> None:
    def write_half() -> None:
        with files.staged(tmp_path / "file") as partial:
            partial.write_bytes(b"half")
            assert names(tmp_path) == [partial.name]
            assert partial.name != "file"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert names(tmp_path) == []


def test_a_planted_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr("secrets.token_hex", lambda size: "00000000")
    (tmp_path / f".file.{os.getpid()}.00000000.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.publish(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"mine"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    files.publish_folder(tmp_path / "steer", {"a": b"1", "b": b"2"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "steer").iterdir()} == {"a": b"1", "b": b"2"}
    assert names(tmp_path) == ["steer"]


def test_nobody_sees_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], files.sync

    def look(path: Path) -> None:
        seen.append((tmp_path / "steer").exists())
        real(path)

    monkeypatch.setattr(files, "sync", look)
    files.publish_folder(tmp_path / "steer", {"a": b"1", "b": b"2"})
    assert seen == [False, True]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "steer").mkdir()
    files.publish_folder(tmp_path / "steer", {"a": b"1"})
    assert names(tmp_path / "steer") == ["a"]


@pytest.mark.parametrize("there", ["folder", "file", "link to a folder"])
def test_a_folder_replaces_nothing(tmp_path: Path, there: str) -> None:
    place, kept = tmp_path / "steer", tmp_path / "kept"
    kept.mkdir()
    (kept / "mine").write_bytes(b"mine")
    match there:
        case "folder":
            kept.rename(place)
        case "file":
            place.write_bytes(b"mine")
        case _:
            place.symlink_to(kept)
    before = names(tmp_path)
    with pytest.raises(FileExistsError):
        files.publish_folder(place, {"a": b"1"})
    assert names(tmp_path) == before
    assert place.read_bytes() == b"mine" if place.is_file() else names(place) == ["mine"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_at("write", monkeypatch)
    with pytest.raises(OSError, match="No space"):
        files.publish_folder(tmp_path / "steer", {"a": b"1"})
    assert names(tmp_path) == []


def test_of_many_folders_one_wins(tmp_path: Path) -> None:
    racers = 8
    barrier = Barrier(racers)

    def race(racer: int) -> bool:
        barrier.wait()
        try:
            files.publish_folder(tmp_path / "steer", {"a": str(racer).encode(), "b": str(racer).encode()})
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(racers) as pool:
        won = list(pool.map(race, range(racers)))
    assert sum(won) == 1
    assert {(tmp_path / "steer" / name).read_bytes() for name in "ab"} == {str(won.index(True)).encode()}
    assert names(tmp_path) == ["steer"]
