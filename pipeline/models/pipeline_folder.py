"""A diffusers pipeline as it lies in a folder: which files are it, and what they weigh. Nothing is loaded or run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from pipeline.errors import ModelLoadError, ModelNotFoundError
from pipeline.models import files

INDEX = "model_index.json"

#: Names under which a component's weights are looked for. Variants such as `model.fp16.safetensors` are not loaded.
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")

_LIBRARIES = ("diffusers", "transformers")


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
        index = files.read_json(self.root / INDEX)
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
        index = files.read_json(self.root / INDEX)
        if not isinstance(index.get("_class_name"), str):
            raise ModelLoadError(str(self.root), f"{INDEX} names no pipeline class of diffusers")
        parts = {n: kind[0] for n, kind in index.items() if isinstance(kind, list) and kind and kind[0] is not None}
        found = []
        for name, library in parts.items():
            folder = self.root / name
            if not name.isidentifier() or not folder.is_dir():
                raise ModelNotFoundError(
                    str(self.root), f"{INDEX} names the component {name!r}, and there is no such folder"
                )
            if any(folder.glob("*.py")):
                raise ModelLoadError(
                    str(folder), "it holds Python code, which is not run; only pipelines of diffusers are loaded"
                )
            files.check_link(folder)
            if library not in _LIBRARIES and not (folder / "config.json").is_file():
                # diffusers would import it; of a component with weights, `components` checks it.
                raise ModelLoadError(
                    str(self.root), f"{INDEX} names {library!r} for {name!r}; wanted {' or '.join(_LIBRARIES)}"
                )
            found.append(folder)
        return tuple(found)


def _weights(folder: Path) -> list[Path]:
    files.check_redirects(folder)
    for name in _WEIGHTS:
        whole, shards = folder / name, folder / f"{name}.index.json"
        if whole.is_file() and shards.is_file():
            raise ModelLoadError(str(folder), f"it holds both {name} and an index of its shards; remove one of the two")
        if whole.is_file():
            return [files.require(folder, name)]
        if shards.is_file():
            return files.named_files(shards)
    files.weight_files(folder)
    raise ModelNotFoundError(str(folder), f"it holds only variants of its weights; wanted {' or '.join(_WEIGHTS)}")


def _header(path: Path) -> list[tuple[str, int]]:
    with files.opened(path) as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - it is no mapping
        return [(str(part.get_dtype()), math.prod(part.get_shape())) for part in slices]
