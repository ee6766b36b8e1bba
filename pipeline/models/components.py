"""The components of a diffusers pipeline that have weights, loaded one by one so that a missing tensor shows."""

from collections.abc import Mapping
from types import ModuleType

import diffusers
import torch
import transformers
from torch import nn

from pipeline.errors import ModelLoadError
from pipeline.models.pipeline_folder import PipelineFolder

#: Libraries whose loading says which tensors the files lack.
_LIBRARIES: Mapping[str, ModuleType] = {"diffusers": diffusers, "transformers": transformers}


def load_components(folder: PipelineFolder, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Returns the modules of a pipeline by component, in evaluation mode.

    `DiffusionPipeline.from_pretrained` would load them too, but where a file lacks a tensor it goes on with random
    numbers and does not tell. Errors of the libraries are the caller's to translate.

    Raises:
        ModelLoadError: The weights of a component lack a tensor, or its class is of neither library.
    """
    return {name: _load(folder, name, library, kind, dtype) for name, (library, kind) in folder.classes.items()}


def _load(folder: PipelineFolder, name: str, library: str, kind: str, dtype: torch.dtype) -> nn.Module:
    place = folder.root / name
    # Some pipelines bring classes of their own, such as a safety checker, in a package named like the pipeline.
    home = _LIBRARIES.get(library) or getattr(diffusers.pipelines, library, None)
    loader = getattr(home, kind, None)
    if not isinstance(loader, type) or not issubclass(loader, nn.Module):
        raise ModelLoadError(str(place), f"{library} has no model {kind}; wanted one of diffusers or transformers")
    module, found = loader.from_pretrained(  # type: ignore[attr-defined]
        place, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    for key in sorted(found["missing_keys"]):
        raise ModelLoadError(str(place), f"its weights lack {key}")
    return module.eval().requires_grad_(requires_grad=False)  # type: ignore[no-any-return]
