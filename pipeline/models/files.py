"""Checkpoints as files: where they lie, what they weigh, and the hash of their bytes."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import safetensors

from pipeline.errors import ModelLoadError, ModelNotFoundError
from schemas.job import HUB_ID

#: Files that may change how a model reads or computes, besides its weights.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")

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
        ModelLoadError: One of them is cut short or otherwise no safetensors file.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt"))
        why = "only pickled weights, which are not loaded" if pickled else "no weights"
        raise ModelNotFoundError(str(folder), f"it holds {why}; wanted *.safetensors or a gguf_file")
    for path in found:
        try:
            with safetensors.safe_open(path, framework="np"):  # reads the header, and holds it against the file's size
                pass
        except (safetensors.SafetensorError, OSError) as exc:
            raise ModelLoadError(str(path), first_line(exc)) from exc
    return found


def setting_files(folder: Path) -> list[Path]:
    """Returns the regular files of a folder that match `SETTINGS`, sorted by name."""
    return sorted(path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file())


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
    """
    if not (folder / name).is_file():
        raise ModelNotFoundError(str(folder), f"it has no {name}")
    return folder / name


def first_line(error: BaseException) -> str:
    """Returns the first line of a foreign error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
