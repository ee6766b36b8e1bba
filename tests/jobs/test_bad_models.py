"""Models that cannot be used, through the command line: one sentence, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.jobs.runs import write_spec


@pytest.fixture
def refused_by_fit(actmap, tmp_path):
    """As `refused`, for what only loading the weights shows: `plan` does not load them."""

    def check(model: Path) -> str:
        spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(model)})
        before = sorted(tmp_path.rglob("*"))
        fitted = actmap("fit", spec, "--run", tmp_path / "run", cwd=tmp_path)
        assert fitted.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        return str(fitted.err.splitlines()[-1])

    return check


@pytest.fixture
def model_copy(llama, tmp_path):
    return Path(shutil.copytree(llama, tmp_path / "model"))


def test_a_model_that_is_not_there(refused, tmp_path):
    assert f"no model at {tmp_path / 'none'}" in refused(tmp_path / "none")
    assert "no model at nobody/nothing" in refused(Path("nobody/nothing"))


def test_a_model_folder_without_weights(refused, model_copy):
    (model_copy / "model.safetensors").unlink()
    assert f"no model at {model_copy}: it holds no weights" in refused(model_copy)


def test_a_model_folder_with_pickled_weights_alone(refused, model_copy):
    weights = load_file(model_copy / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    torch.save(weights, model_copy / "pytorch_model.bin")
    assert "only pickled weights, which are not loaded" in refused(model_copy)


@pytest.mark.parametrize("kept", [5, 2000, -4])
def test_a_model_whose_weights_are_cut_short(refused, model_copy, kept):
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    sentence = refused(model_copy)
    assert f"the model at {model_copy}" in sentence
    assert "cannot be loaded" in sentence


def test_a_model_that_lacks_a_weight(refused_by_fit, model_copy):
    path = model_copy / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused_by_fit(model_copy)


def test_a_model_with_a_weight_of_another_shape(refused_by_fit, model_copy):
    path = model_copy / "model.safetensors"
    save_file(
        load_file(path) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}, path, metadata={"format": "pt"}
    )
    assert "model.layers.1.mlp.up_proj.weight" in refused_by_fit(model_copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "{}", "null"])
def test_a_model_with_a_broken_file(refused, model_copy, name, text):
    (model_copy / name).write_text(text)
    sentence = refused(model_copy)
    assert str(model_copy) in sentence
    assert "cannot be loaded" in sentence


def test_a_model_without_a_tokenizer(refused, model_copy):
    for path in model_copy.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(model_copy)


def test_a_model_that_wants_its_own_code_run(refused, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert "code" in refused(model_copy)


@pytest.mark.parametrize("data", [None, b"", b"GGUF", b"not a gguf file at all, but long enough for its header"])
def test_a_gguf_file_that_is_not_there_or_is_none(refused, actmap, model_copy, tmp_path, data):
    if data is not None:
        (model_copy / "a.gguf").write_bytes(data)
    sentence = refused(model_copy, "a.gguf")
    assert str(model_copy) in sentence
    assert "a.gguf" in sentence
    done = actmap("generate", "--model", model_copy / "a.gguf", "--prompt", "The")
    assert done.code == 2
    assert done.refusal == sentence
