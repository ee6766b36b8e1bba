import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelLoadError, ModelNotFoundError
from tests.pipeline.models.drawing import checkpoint_of, image_of, model_of


@pytest.mark.parametrize("name", ["sdxl", "flux"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_counts_from_headers_are_those_of_the_loaded_pipeline(
    folders: Mapping[str, Path], name: str, dtype: str, size: int
):
    checkpoint = checkpoint_of(folders[name], dtype=dtype)
    parts = [part for part in checkpoint.load("cpu").root.components.values() if isinstance(part, torch.nn.Module)]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    assert checkpoint.facts.num_parameters == sum(parameter.numel() for parameter in parameters)
    assert checkpoint.facts.weight_bytes == sum(parameter.nbytes for parameter in parameters)
    assert checkpoint.facts.weight_bytes == checkpoint.facts.num_parameters * size
    assert checkpoint.location == folders[name]


def test_the_fingerprint_is_of_what_is_loaded(folders: Mapping[str, Path], tmp_path: Path):
    original = checkpoint_of(folders["sdxl"]).facts.fingerprint
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    (copy / "README.md").write_text("other")
    shutil.copy(
        copy / "unet/diffusion_pytorch_model.safetensors", copy / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    assert checkpoint_of(copy).facts.fingerprint == original
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint_of(copy).facts.fingerprint != original


def test_other_settings_of_a_component_are_another_fingerprint(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.02}))
    assert checkpoint_of(copy).facts.fingerprint != checkpoint_of(folders["sdxl"]).facts.fingerprint


def test_weights_in_shards_are_counted_and_loaded(folders: Mapping[str, Path], tmp_path: Path):
    model_of(folders["sdxl"]).root.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    checkpoint = checkpoint_of(tmp_path / "shards")
    assert checkpoint.facts.num_parameters == checkpoint_of(folders["sdxl"]).facts.num_parameters
    assert image_of(checkpoint.load("cpu")) == image_of(model_of(folders["sdxl"]))


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _foreign_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["mine", "Mine"]}))


def _no_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def _no_weights(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()


def _only_a_variant(folder: Path) -> None:
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")


def _only_pickle(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")


def _shards_elsewhere(folder: Path) -> None:
    _no_weights(folder)
    index = {"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _code(folder: Path) -> None:
    (folder / "unet/mine.py").write_text("raise SystemExit")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (shutil.rmtree, ModelNotFoundError, "no such folder"),
        (_no_index, ModelNotFoundError, "no model_index.json"),
        (_broken_index, ModelLoadError, "no JSON"),
        (_foreign_class, ModelLoadError, "names no pipeline class"),
        (_no_component, ModelNotFoundError, "'vae'"),
        (_no_weights, ModelNotFoundError, "no weights"),
        (_only_a_variant, ModelNotFoundError, "only variants"),
        (_only_pickle, ModelNotFoundError, "only pickled weights"),
        (_shards_elsewhere, ModelLoadError, "no files beside it"),
        (_code, ModelLoadError, "Python code"),
    ],
)
def test_a_folder_that_is_no_safe_pipeline_is_refused_at_once(
    folders: Mapping[str, Path], tmp_path: Path, damage: Any, error: type[Exception], says: str
):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    damage(copy)
    with pytest.raises(error, match=says) as caught:
        checkpoint_of(copy)
    assert "\n" not in str(caught.value)


def test_weights_cut_short_are_refused_by_the_plan_and_by_loading(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError):
        _ = checkpoint_of(copy).facts
    with pytest.raises(ModelLoadError) as caught:
        model_of(copy)
    assert "\n" not in str(caught.value)


def test_an_unknown_class_is_refused_in_one_sentence(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoSuchPipeline"}))
    with pytest.raises(ModelLoadError, match="NoSuchPipeline"):
        model_of(copy)


def _drop(weights: Path, key: str) -> None:
    tensors = load_file(weights)
    del tensors[key]
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "component", "key"),
    [
        ("sdxl", "unet", "mid_block.resnets.0.conv1.weight"),
        ("sdxl", "vae", "decoder.conv_out.bias"),
        ("sdxl", "text_encoder_2", "text_projection.weight"),
        ("flux", "transformer", "proj_out.weight"),
        ("flux", "text_encoder_2", "encoder.final_layer_norm.weight"),
    ],
)
def test_weights_that_lack_a_tensor_are_refused_by_its_name(
    folders: Mapping[str, Path], tmp_path: Path, name: str, component: str, key: str
):
    copy = shutil.copytree(folders[name], tmp_path / "copy")
    (weights,) = (copy / component).glob("*.safetensors")
    _drop(weights, key)
    with pytest.raises(ModelLoadError) as caught:
        model_of(copy)
    assert f"{copy / component} cannot be loaded: its weights lack {key}" in str(caught.value)


def test_a_component_of_a_foreign_library_is_not_imported(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["antigravity", "UNet"]}))
    with pytest.raises(ModelLoadError, match="antigravity has no model UNet"):
        model_of(copy)
    assert "antigravity" not in sys.modules


def test_a_device_that_torch_does_not_have_is_a_loading_error(folders: Mapping[str, Path]):
    with pytest.raises(ModelLoadError, match="nowhere"):
        checkpoint_of(folders["sdxl"]).load("nowhere")
