import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import ModelLoadError, PromptLengthError
from pipeline.models import PackingRule
from pipeline.models.causal_lm import CausalLMCheckpoint
from schemas.job import CausalLM
from tests.models import tiny_llama
from tests.pipeline.models.gguf_files import write_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a table of twenty positions."""
    folder = tiny_llama(tmp_path_factory.mktemp("models") / "gpt2")
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=1, n_head=4, n_positions=20, bos_token_id=1, eos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def checkpoint_of(folder: Path, **settings: Any) -> CausalLMCheckpoint:
    return CausalLMCheckpoint(CausalLM(kind="causal-lm", path=str(folder), **settings), folder.parent / "cache")


def test_prompts_longer_than_the_position_table_are_refused(gpt2: Path):
    with pytest.raises(PromptLengthError) as caught:
        checkpoint_of(gpt2).survey("blocks", PackingRule("plain", 21, 64), "cpu")
    assert str(caught.value) == (
        f"compute.max_tokens is 21, but the model at {gpt2} has positions for 20 tokens; write max_tokens: 20 or less"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_prompts_as_long_as_the_position_table_run(gpt2: Path):
    rule = PackingRule("plain", 20, 64)
    checkpoint = checkpoint_of(gpt2)
    assert checkpoint.survey("blocks", rule, "cpu").sites
    model = checkpoint.load("cpu")
    packed = model.pack(["a song about rain, sung on a bright morning" * 3, "a"], 0, rule)
    assert (packed.num_tokens[0], packed.num_truncated) == (20, 1)
    widths = [tuple(batch.inputs["input_ids"].shape) for batch in packed.batches]
    assert widths == [(2, 20)]
    for batch in packed.batches:
        model.forward(batch)


@pytest.mark.parametrize(
    "name",
    ["chat_template.jinja", "generation_config.json", "x.tiktoken", "spiece.model", "vocab.txt", "tokenizer.json"],
)
def test_the_fingerprint_is_of_every_file_that_may_change_how_the_model_reads(llama: Path, tmp_path: Path, name: str):
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    before = checkpoint_of(copy).facts.fingerprint
    (copy / "folder.json").mkdir()
    (copy / "README.md").write_text("other")
    assert checkpoint_of(copy).facts.fingerprint == before == checkpoint_of(llama).facts.fingerprint
    with (copy / name).open("a") as file:
        file.write("\n")
    assert checkpoint_of(copy).facts.fingerprint != before


def test_a_plan_builds_one_skeleton(llama: Path, monkeypatch: pytest.MonkeyPatch):
    built = []
    build = transformers.AutoModelForCausalLM.from_config

    def counted(*args: Any, **settings: Any) -> Any:
        built.append(args)
        return build(*args, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", counted)
    checkpoint = checkpoint_of(llama)
    first = checkpoint.facts
    survey = checkpoint.survey("blocks", PackingRule("plain", 32, 64), "cpu")
    assert checkpoint.attention
    assert len(built) == 1
    # Neither call leaves a trace on what the other finds.
    other = checkpoint_of(llama)
    assert other.survey("blocks", PackingRule("plain", 32, 64), "cpu") == survey
    assert other.facts == first
    assert other.survey("blocks", PackingRule("plain", 32, 64), "cpu") == survey


def test_another_transformers_dequantises_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(tmp_path / "a.gguf")
    checkpoint = checkpoint_of(tmp_path, gguf_file="a.gguf")
    here = checkpoint.location
    assert checkpoint.load("cpu").root.config.num_hidden_layers == 1
    assert here.is_dir()
    monkeypatch.setattr(transformers, "__version__", "99.0.0")
    other = checkpoint_of(tmp_path, gguf_file="a.gguf").location
    assert other.parent == here.parent
    assert other != here


def test_a_device_that_torch_does_not_have_is_a_loading_error(llama: Path):
    with pytest.raises(ModelLoadError, match="nowhere"):
        checkpoint_of(llama).load("nowhere")
    assert torch.get_default_device() == torch.device("cpu")
