"""Checkpoints as files: where they lie, what they weigh, and the hash of their bytes.

A model's folder may come from anyone, so nothing outside it is read for it. A folder of the hub's cache holds links
into the cache's ``blobs``: those are followed, and so is a link to a model's whole folder. Other links that lead out
of a folder are refused, as are names with ``..`` in an index.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from pipeline.errors import ModelLoadError, ModelNotFoundError
from schemas.headers import LENGTH_BYTES, HeaderError, check_header
from schemas.job import HUB_ID

#: Files that may change how a model reads or computes, besides its weights.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")

#: Room for the names of a quarter of a million tensors; larger headers take seconds to parse, and memory.
MAX_HEADER_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20

#: Where transformers finds it, and the package for adapters is installed, it loads the model that this file names.
_ADAPTER = "adapter_config.json"

_CONFIG = "config.json"
_LAYERS = re.compile("(num|n)_(.*_)?layers?")

_BLOCK = 4 << 20


def find_folder(path: str, revision: str | None, gguf_file: str | None = None) -> Path:
    """Returns the folder of a model: `path` itself, or the local copy of a hub id, fetched if need be.

    Args:
        path: A path or a hub id. What may be a hub id is one: whether the folder that the process runs in holds such a
            path plays no part, so a spec means the same everywhere.
        revision: Branch, tag or commit of a hub id.
        gguf_file: The one file to fetch; None fetches the settings and the safetensors.

    Raises:
        ModelNotFoundError: It is neither.
    """
    if not HUB_ID.fullmatch(path):
        folder = Path(os.path.expanduser(path))
        if folder.is_dir():
            return folder.resolve()
        raise ModelNotFoundError(path, "there is no such folder, and it is no hub id (org/name)")
    import huggingface_hub  # slow to import, and only for hub ids
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [*SETTINGS, "*.safetensors"] if gguf_file is None else [gguf_file]
    try:
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as exc:
        raise ModelNotFoundError(
            path, f"there is no such folder, and the hub does not give it ({type(exc).__name__})"
        ) from exc


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder, sorted by name.

    Raises:
        ModelNotFoundError: There are none.
        ModelLoadError: One of them is cut short or otherwise no safetensors file, or leads out of the folder, or an
            index or an adapter would have other files loaded.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt"))
        why = "only pickled weights, which are not loaded" if pickled else "no weights"
        raise ModelNotFoundError(str(folder), f"it holds {why}; wanted *.safetensors or a gguf_file")
    check_redirects(folder)
    num_tensors = 0
    for path in found:
        with opened(path) as weights:  # reads the header, and holds it against the file's size
            num_tensors += len(weights.keys())
    for name, value in _config(folder):
        # Each of a million layers would be made before anybody saw that the weights have none of them.
        if _LAYERS.fullmatch(name) and isinstance(value, int) and value > num_tensors:
            problem = f"its {_CONFIG} wants {value} {name}, its weights are {num_tensors} tensors"
            raise ModelLoadError(str(folder), problem)
    return found


def check_redirects(folder: Path) -> None:
    """Checks that nothing in a folder would have the libraries load weights or code from somewhere else.

    Raises:
        ModelLoadError: An adapter names another model, an index names files that are not beside it, or the
            configuration names code on the hub.
        ModelNotFoundError: An index names a file that is not there.
    """
    if (folder / _ADAPTER).exists():
        raise ModelLoadError(str(folder), f"it holds an adapter, which is not loaded; merge it, or remove {_ADAPTER}")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        named_files(index)
    for name, value in _config(folder):
        # `org/name` is a kernel on the hub, which transformers fetches and runs without asking.
        if name.endswith("_implementation") and "/" in str(value):
            raise ModelLoadError(str(folder), f"its {_CONFIG} asks for code of the hub, {name} {value!r}; remove that")


def _config(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of a model's configuration, those of its parts too."""
    waiting = [read_json(folder / _CONFIG)] if (folder / _CONFIG).is_file() else []
    for part in waiting:
        waiting += [value for value in part.values() if isinstance(value, dict)]
        yield from part.items()


def named_files(index: Path) -> list[Path]:
    """Returns the files that an index of weights names, all of them beside it.

    Raises:
        ModelLoadError: It is no index, or names anything but files beside it.
        ModelNotFoundError: One of the files is not there.
    """
    named = read_json(index).get("weight_map")
    wanted = sorted({str(file) for file in named.values()}) if isinstance(named, dict) else []
    if not wanted or not all(Path(f).name == f and f.endswith(".safetensors") for f in wanted):
        raise ModelLoadError(str(index), "it names no files beside it that hold the weights; wanted *.safetensors")
    return [require(index.parent, file) for file in wanted]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A context that gives a safetensors file, of which only the header is read.

    Raises:
        ModelLoadError: It is damaged, has a header of more than `MAX_HEADER_BYTES`, or leads out of its folder.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            check_header(file.read(LENGTH_BYTES), MAX_HEADER_BYTES)
        with safetensors.safe_open(path, framework="np") as weights:
            yield weights
    except (HeaderError, safetensors.SafetensorError, OSError) as exc:
        raise ModelLoadError(str(path), first_line(exc)) from exc


def read_json(path: Path) -> dict[str, Any]:
    """Returns a file's one JSON object.

    Raises:
        ModelLoadError: It holds none, or more than `MAX_INDEX_BYTES`.
    """
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ModelLoadError(str(path), f"it has {path.stat().st_size} bytes; wanted at most {MAX_INDEX_BYTES}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise ModelLoadError(str(path), f"it is no JSON ({first_line(exc)})") from exc
    if not isinstance(content, dict):
        raise ModelLoadError(str(path), "it is no JSON object")
    return content


def setting_files(folder: Path) -> list[Path]:
    """Returns the regular files of a folder that match `SETTINGS`, sorted by name.

    Raises:
        ModelLoadError: One of them is a link that leads out of the folder.
    """
    found = sorted(path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file())
    for path in found:
        check_file(path)
    return found


def check_file(path: Path) -> None:
    """Checks that a file of a model is a regular one in the model's folder, or among the blobs of the hub's cache.

    Raises:
        ModelLoadError: It is none, or a link that leads out of there.
    """
    if not path.is_file():
        raise ModelLoadError(str(path), "it is no regular file")
    check_link(path)


def check_link(path: Path) -> None:
    """Checks that a file or folder of a model lies where `check_file` says.

    Raises:
        ModelLoadError: It is a link that leads out of there.
    """
    folder, place = path.parent.resolve(), path.resolve()
    in_cache = place.parent.name == "blobs" and place.parent.parent.name.startswith("models--")
    if not (place.is_relative_to(folder) or in_cache):
        raise ModelLoadError(str(path), "it is a link that leads out of the model's folder; put there what it leads to")


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """Returns the SHA-256 over the names, relative to `root`, and the bytes of files."""
    seen = hashlib.sha256()
    for path in sorted(paths):
        seen.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                seen.update(block)
    return seen.hexdigest()


def require(folder: Path, name: str) -> Path:
    """Returns a file of a folder.

    Raises:
        ModelNotFoundError: It is not there.
        ModelLoadError: Its name or a link leads out of the folder.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelLoadError(str(folder), f"{name!r} leads out of it; wanted the name of a file in it")
    if not path.is_file():
        raise ModelNotFoundError(str(folder), f"it has no {name}")
    check_file(path)
    return path


def first_line(error: BaseException) -> str:
    """Returns the first line of a foreign error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
