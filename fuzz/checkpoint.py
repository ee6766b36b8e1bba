"""Folders of models: whatever the bytes of weights, index and configuration, they are read or an `InputError`."""

import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from pipeline.errors import InputError
from pipeline.models.files import setting_files, weight_files
from pipeline.models.pipeline_folder import INDEX, PipelineFolder

_MODEL = Path(tempfile.mkdtemp())
_PIPELINE = Path(tempfile.mkdtemp())
_WEIGHTS = safetensors.torch.save({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, {"format": "pt"})
_FILES = ("model.safetensors", "config.json", "model.safetensors.index.json", INDEX)


def seeds() -> list[bytes]:
    """A file of each kind; the first byte chooses which it is."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "text_config": {"attn_implementation": "sdpa"}}
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "model.safetensors"}}
    pipeline = {"_class_name": "Any", "unet": ["diffusers", "Any"], "vae": [None, None]}
    files = [_WEIGHTS, *(json.dumps(one).encode() for one in (config, index, pipeline))]
    return [bytes([number]) + data for number, data in enumerate(files)]


def check(data: bytes) -> None:
    """Looks at a model and at a pipeline of which one file has these bytes."""
    changed = _FILES[(data[0] if data else 0) % len(_FILES)]
    (_PIPELINE / "unet").mkdir(exist_ok=True)
    for folder in (_MODEL, _PIPELINE / "unet"):
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(_WEIGHTS)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        if changed != INDEX:
            (folder / changed).write_bytes(data[1:])
    index = {"_class_name": "Any", "unet": ["diffusers", "Any"]}
    (_PIPELINE / INDEX).write_bytes(data[1:] if changed == INDEX else json.dumps(index).encode())
    for look in (lambda: (weight_files(_MODEL), setting_files(_MODEL)), lambda: PipelineFolder(_PIPELINE).counts,
                 lambda: PipelineFolder(_PIPELINE).classes):  # fmt: skip
        try:
            look()
        except InputError as refused:
            if len(str(refused)) > 2000:
                raise AssertionError(f"a refusal of {len(str(refused))} characters") from refused
