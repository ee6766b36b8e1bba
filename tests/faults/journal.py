"""What a run does to its files, written down, and the disks that the loss of power at any moment may leave of it.

A disk promises what was flushed and nothing else: the bytes of a file when the file was, its name when its folder was.
Of the rest any part may be there.
"""

import base64
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

#: ``flushed``: what was not flushed is lost. ``named``: names are there, bytes that were not flushed are not.
#: ``mixed``: of either any part.
Loss = Literal["flushed", "named", "mixed"]

#: An operation: its name, the path or paths, and the bytes of a write.
Step = tuple[str, str, str, bytes]


@final
class Journal:
    """Writes down what this process does to files below a folder, from now on.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root, self.steps = os.path.abspath(root), list[Step]()
        for name in ("open", "write", "fsync", "link", "replace", "unlink", "mkdir", "symlink", "rmdir"):
            setattr(os, name, self._watching(name, getattr(os, name)))

    def save(self, path: Path) -> None:
        """Writes all that was done."""
        path.write_text(json.dumps([(*step[:3], base64.b64encode(step[3]).decode()) for step in self.steps]))

    def _watching(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **settings: Any) -> Any:
            steps = self._steps(name, args, settings)
            result = real(*args, **settings)
            for step in steps:
                if step[1].startswith(self._root):
                    self.steps.append((step[0], self._below(step[1]), self._below(step[2]), step[3][: _length(result)]))
            return result

        return stand_in

    def _below(self, path: str) -> str:
        return os.path.relpath(path, self._root) if path.startswith("/") else path

    def _steps(self, name: str, args: tuple[Any, ...], settings: dict[str, Any]) -> list[Step]:
        match name:
            case "open":
                return [("create", os.path.abspath(args[0]), "", b"")] if args[1] & os.O_CREAT else []
            case "write" | "fsync":
                path = os.readlink(f"/proc/self/fd/{args[0]}")
                return [(name, path, "", bytes(args[1]) if name == "write" else b"")]
            case "link" | "replace":
                return [(name, os.path.abspath(args[1]), os.path.abspath(args[0]), b"")]
            case "symlink":
                return [(name, os.path.abspath(args[1]), str(args[0]), b"")]
            case _:
                folder = settings.get("dir_fd")
                base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
                return [(name, os.path.join(base, args[0]), "", b"")]


def _length(result: object) -> int | None:
    return result if isinstance(result, int) else None


def steps_in(path: Path) -> list[Step]:
    """Returns what a journal holds."""
    return [(step[0], step[1], step[2], base64.b64decode(step[3])) for step in json.loads(path.read_text())]


@final
@dataclass(eq=False)
class _File:
    """A file: its bytes, how many are flushed, or where it leads if it is a link."""

    data: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""
    leads: str = ""


@final
@dataclass(eq=False)
class _Folder:
    """A folder: what is in it, what of that was flushed, and the changes since."""

    entries: "dict[str, _File | _Folder]" = field(default_factory=dict)
    flushed: "dict[str, _File | _Folder]" = field(default_factory=dict)
    changes: "list[dict[str, _File | _Folder | None]]" = field(default_factory=list)

    def change(self, **entries: "_File | _Folder | None") -> None:
        """Changes entries in one step; None removes."""
        _apply(self.entries, entries)
        self.changes.append(entries)


@final
class Disk:
    """A disk on which the first steps of a journal were taken."""

    def __init__(self) -> None:
        self._root = _Folder()

    def take(self, step: Step) -> None:
        """Takes one step."""
        name, path, other, data = step
        folder, last = self._folder(os.path.dirname(path)), os.path.basename(path)
        match name:
            case "create":
                folder.change(**{last: _File()})
            case "write":
                self._file(path).data += data
            case "fsync":
                self._flush(path)
            case "link":
                folder.change(**{last: self._file(other)})
            case "replace":
                assert os.path.dirname(path) == os.path.dirname(other), "a file is renamed within its folder"
                folder.change(**{last: folder.entries[os.path.basename(other)], os.path.basename(other): None})
            case "symlink":
                folder.change(**{last: _File(leads=other)})
            case "mkdir" if path != ".":
                folder.change(**{last: _Folder()})
            case "unlink" | "rmdir":
                folder.change(**{last: None})

    def lose(self, loss: Loss, rng: random.Random) -> dict[str, bytes | str]:
        """Returns what is there after the loss of power: the bytes of each file, or where a link leads, by path."""
        return dict(self._left(self._root, "", loss, rng))

    def _left(self, folder: _Folder, prefix: str, loss: Loss, rng: random.Random) -> "list[tuple[str, bytes | str]]":
        left: list[tuple[str, bytes | str]] = []
        for name, what in _entries(folder, loss, rng).items():
            if isinstance(what, _Folder):
                left += self._left(what, f"{prefix}{name}/", loss, rng)
            else:
                left.append((prefix + name, what.leads or _bytes(what, loss, rng)))
        return left

    def _flush(self, path: str) -> None:
        what = self._find(path)
        if isinstance(what, _File):
            what.flushed = bytes(what.data)
        else:
            what.flushed, what.changes = dict(what.entries), []

    def _find(self, path: str) -> _File | _Folder:
        found: _File | _Folder = self._root
        for part in path.split("/"):
            if part not in {"", "."}:
                assert isinstance(found, _Folder)
                found = found.entries[part]
        return found

    def _folder(self, path: str) -> _Folder:
        found = self._find(path)
        assert isinstance(found, _Folder)
        return found

    def _file(self, path: str) -> _File:
        found = self._find(path)
        assert isinstance(found, _File)
        return found


def write_out(left: dict[str, bytes | str], root: Path) -> None:
    """Writes into a folder what the loss of power left."""
    root.mkdir(parents=True)
    for name, what in left.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            path.symlink_to(what)
        else:
            path.write_bytes(what)


def _apply(entries: "dict[str, _File | _Folder]", change: "dict[str, _File | _Folder | None]") -> None:
    for name, what in change.items():
        if what is None:
            entries.pop(name, None)
        else:
            entries[name] = what


def _entries(folder: _Folder, loss: Loss, rng: random.Random) -> "dict[str, _File | _Folder]":
    if loss == "named":
        return folder.entries
    entries = dict(folder.flushed)
    for change in folder.changes if loss == "mixed" else ():
        if rng.random() < 0.5:
            _apply(entries, change)
    return entries


def _bytes(file: _File, loss: Loss, rng: random.Random) -> bytes:
    if loss != "mixed":
        return file.flushed
    length = rng.choice((len(file.flushed), rng.randint(len(file.flushed), len(file.data)), len(file.data)))
    return bytes(file.data[:length])
