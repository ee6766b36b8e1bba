"""A diffusers pipeline as it lies in a folder: which files are it, and what they weigh. Nothing is loaded or run."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import safetensors

from pipeline.errors import ModelLoadError, ModelNotFoundError
from pipeline.models import files

INDEX = "model_index.json"

#: Names under which a component's weights are looked for. Variants such as `model.fp16.safetensors` are not loaded.
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@final
@dataclass(frozen=True)
class PipelineFolder:
    """The folder of a pipeline: an index that names its components, and a folder for each of them.

    Args:
        root: The folder.
    """

    root: Path

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The weight files that loading reads, component by component.

        Raises:
            ModelNotFoundError: There is no index, or a component has no safetensors weights.
            ModelLoadError: The index is damaged, or a component would run code of its own.
        """
        models = [folder for folder in self._components if (folder / "config.json").is_file()]
        if not models:
            raise ModelNotFoundError(str(self.root), f"no component that {INDEX} names has a config.json")
        return tuple(path for folder in models for path in _weights(folder))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the index and of the components' settings and weights."""
        settings = {path for folder in self._components for path in files.setting_files(folder)}
        return files.hash_files({self.root / INDEX, *settings, *self.weights}, self.root)

    @cached_property
    def classes(self) -> Mapping[str, tuple[str, str]]:
        """Library and class of each component that has weights, by the component's name, as the index has them.

        Raises:
            ModelLoadError: The index names no class.
        """
        index = _read(self.root / INDEX)
        found = {folder.name: index[folder.name] for folder in self._components if (folder / "config.json").is_file()}
        for name, value in found.items():
            if len(value) != 2 or not all(isinstance(part, str) for part in value):
                raise ModelLoadError(str(self.root), f"{INDEX} names no library and class of {name!r}")
        return {name: (library, kind) for name, (library, kind) in found.items()}

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Numbers in the weights by type, as safetensors names types, from the files' headers alone."""
        counts: dict[str, int] = {}
        for path in self.weights:
            for kind, size in _header(path):
                counts[kind] = counts.get(kind, 0) + size
        return counts

    @cached_property
    def _components(self) -> tuple[Path, ...]:
        files.require(self.root, INDEX)
        index = _read(self.root / INDEX)
        if not isinstance(index.get("_class_name"), str):
            raise ModelLoadError(str(self.root), f"{INDEX} names no pipeline class of diffusers")
        parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
        found = []
        for name in parts:
            folder = self.root / name
            if not name.isidentifier() or not folder.is_dir():
                raise ModelNotFoundError(
                    str(self.root), f"{INDEX} names the component {name!r}, and there is no such folder"
                )
            if any(folder.glob("*.py")):
                raise ModelLoadError(
                    str(folder), "it holds Python code, which is not run; only pipelines of diffusers are loaded"
                )
            found.append(folder)
        return tuple(found)


def _weights(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        shards = folder / f"{name}.index.json"
        if shards.is_file():
            named = _read(shards).get("weight_map")
            wanted = sorted({str(file) for file in named.values()}) if isinstance(named, dict) else []
            if not wanted or any(Path(file).name != file for file in wanted):
                raise ModelLoadError(str(shards), "it names no files beside it that hold the weights")
            return [files.require(folder, file) for file in wanted]
    files.weight_files(folder)
    raise ModelNotFoundError(str(folder), f"it holds only variants of its weights; wanted {' or '.join(_WEIGHTS)}")


def _header(path: Path) -> list[tuple[str, int]]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
            return [(str(part.get_dtype()), math.prod(part.get_shape())) for part in slices]
    except (safetensors.SafetensorError, OSError) as exc:
        raise ModelLoadError(str(path), files.first_line(exc)) from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise ModelLoadError(str(path), f"it is no JSON ({files.first_line(exc)})") from exc
    if not isinstance(content, dict):
        raise ModelLoadError(str(path), "it is no JSON object")
    return content
