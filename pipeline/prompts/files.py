"""Finds prompt files: one, several or a folder of them, on this machine or behind a URL."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, final

import fsspec
import pyarrow as pa
from pyarrow import fs

from pipeline.errors import ColumnNotFoundError, PromptFileError, PromptFileNotFoundError

Format = Literal["Parquet", "JSON Lines", "CSV", "TSV", "text"]

_FORMATS: dict[str, Format] = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".json": "JSON Lines",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".txt": "text",
}


@final
@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Args:
        place: What a person calls it: an absolute path or a URL.
        path: What its file system calls it.
        size: Its size in bytes; None where the file system cannot tell.
        format: How it is written.
        filesystem: Where it is.
    """

    place: str
    path: str
    size: int | None
    format: Format
    filesystem: fs.FileSystem


def find_files(path: str | Sequence[str]) -> tuple[PromptFile, ...]:
    """Returns the files of a side in their canonical order: by name, then by path.

    Args:
        path: A file, a folder, or several files. Of a folder, the files that lie in it and that have a suffix of a
            known format count; hidden ones do not, nor do links that lead out of it.

    Raises:
        PromptFileNotFoundError: There is nothing at a place.
        PromptFileError: A format is unknown, formats are mixed, a file is named twice, or a folder has no prompts.
    """
    found = [file for place in ([path] if isinstance(path, str) else path) for file in _at(place)]
    found.sort(key=lambda file: (PurePosixPath(file.path).name, file.place))
    for one, other in itertools.pairwise(found):
        if one.place == other.place:
            raise PromptFileError(one.place, "it is named twice; name each file once")
    by_format = {file.format: file for file in reversed(found)}
    if len(by_format) > 1:
        (one_format, one), (other_format, other) = sorted(by_format.items())[:2]
        problem = f"it is {one_format}, but {other.place} is {other_format}; wanted files of one format"
        raise PromptFileError(one.place, problem)
    return tuple(found)


def check_columns(file: PromptFile, names: Iterable[str | None], there: Sequence[str]) -> None:
    """Checks that each name is that of one column.

    Raises:
        ColumnNotFoundError: There is no such column, or no name.
        PromptFileError: Several columns have it.
    """
    for name in names:
        if name not in there:
            raise ColumnNotFoundError(file.place, name, there)
        if there.count(name) > 1:
            raise PromptFileError(file.place, f"{there.count(name)} columns are named {name!r}; wanted one")


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Translates what Arrow and the file system raise while the file at `place` is read.

    Raises:
        PromptFileError: The file cannot be read.
    """
    try:
        yield
    except UnicodeDecodeError as exc:
        raise PromptFileError(place, "its text is not UTF-8; save it as UTF-8") from exc
    except (pa.ArrowException, OSError) as exc:
        raise PromptFileError(place, f"{_sentence(exc)}; wanted a whole file, in the format of its suffix") from exc


def _at(place: str) -> list[PromptFile]:
    """Returns the file at a place, or the files in the folder there."""
    if "://" not in place:
        place = str(Path(place).absolute())
    filesystem, path = _open(place)
    with reading(place):
        info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise PromptFileNotFoundError(place)
    if info.type == fs.FileType.Directory:
        return _in_folder(place, path, filesystem)
    suffix = PurePosixPath(path).suffix.lower()
    if info.type != fs.FileType.File or suffix not in _FORMATS:
        raise PromptFileError(place, f"wanted a folder, or a file with one of the suffixes {' '.join(_FORMATS)}")
    return [PromptFile(place, path, info.size, _FORMATS[suffix], filesystem)]


def _in_folder(place: str, path: str, filesystem: fs.FileSystem) -> list[PromptFile]:
    with reading(place):
        infos = filesystem.get_file_info(fs.FileSelector(path))
    files = [
        PromptFile(f"{place.rstrip('/')}/{info.base_name}", info.path, info.size, _FORMATS[suffix], filesystem)
        for info in infos
        if info.type == fs.FileType.File
        and (suffix := PurePosixPath(info.path).suffix.lower()) in _FORMATS
        and not info.base_name.startswith((".", "_"))
        and not (isinstance(filesystem, fs.LocalFileSystem) and _leads_out(Path(info.path), Path(path)))
    ]
    if not files:
        raise PromptFileError(place, f"the folder itself has no file with one of the suffixes {' '.join(_FORMATS)}")
    return files


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link to elsewhere; the hub's cache has links into its ``blobs``."""
    if not path.is_symlink():
        return False
    there, parents = path.resolve(), folder.resolve().parents
    blobs = [parent / "blobs" for parent in parents if parent.name.startswith("datasets--")]
    return not any(there.is_relative_to(place) for place in (folder.resolve(), *blobs))


def _open(place: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a place, and what that calls it."""
    if "://" not in place:
        return fs.LocalFileSystem(), place
    try:
        remote, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError, OSError) as exc:
        raise PromptFileError(place, f"{_sentence(exc)}; wanted a URL that fsspec can open") from exc
    return fs.PyFileSystem(fs.FSSpecHandler(remote)), path


def _sentence(exc: Exception) -> str:
    """Returns the core of what a foreign error says, as a part of a sentence."""
    text = " ".join(str(exc).split()).rpartition(": Invalid: ")[2].rstrip(".") or type(exc).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
