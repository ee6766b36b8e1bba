import errno
import os
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


def test_a_killed_writer_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from schemas import files
def die(*args): os.kill(os.getpid(), 9)
os.fsync = die
files.publish_folder(Path(sys.argv[1]), {"a": b"1"})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "steer")], cwd=ROOT, check=False)
    assert done.returncode == -9
    (left,) = names(tmp_path)
    assert left.startswith(".steer.")
    assert left.endswith(".partial")
    files.publish_folder(tmp_path / "steer", {"a": b"again"})
    assert (tmp_path / "steer/a").read_bytes() == b"again"


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
