import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import act
from tests.models import tiny_llama

FEW = ("--new-tokens", "4")


@pytest.fixture
def generate(actmap, llama):
    def run(*arguments: str | Path, model: Path = llama):
        return actmap("generate", "--model", model, *FEW, *arguments)

    return run


def test_every_prompt_is_continued_at_every_strength_in_the_order_given(generate, fitted):
    made = generate(
        *("--steer", fitted / "steer", "--strength", "1", "--strength", "0", "--strength", "-0.5"),
        *("--prompt", "the sun", "--prompt", "a song", "--json"),
    ).json["generations"]
    assert [(one["prompt"], one["strength"]) for one in made] == [
        (prompt, strength) for prompt in ("the sun", "a song") for strength in (1.0, 0.0, -0.5)
    ]
    assert len({one["output"] for one in made if one["prompt"] == "the sun"}) > 1


def test_the_text_is_what_the_loader_and_transformers_give(generate, fitted, llama):
    found = generate("--steer", fitted / "steer", "--strength", "1", "--prompt", "the sun", "--json").json
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)
    ids = tokenizer("the sun", return_tensors="pt")["input_ids"]
    with torch.no_grad(), act.apply(act.load(fitted / "steer"), model, strength=1.0):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            repetition_penalty=1.2,
        )
    wanted = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert found["generations"][0]["output"] == wanted


def test_the_table_has_a_row_a_prompt_and_a_column_a_strength(generate, fitted):
    done = generate("--steer", fitted / "steer", "--prompt", "日本語 👩‍👩‍👧 [bold]x[/bold]", "--prompt", "a song")
    assert (done.code, done.err) == (0, "")
    for words in ("strength 0 ", "strength 0.5", "strength 1 ", "日本語 👩‍👩‍👧 [bold]x[/bold]", "a song"):
        assert words in done.out
    assert not any(ord(char) < 32 and char != "\n" for char in done.out)


def test_without_a_steer_the_model_speaks_for_itself(generate, fitted):
    alone = generate("--prompt", "the sun", "--json").json["generations"]
    unsteered = generate("--steer", fitted / "steer", "--strength", "0", "--prompt", "the sun", "--json").json
    assert alone == unsteered["generations"]
    assert [one["strength"] for one in alone] == [0.0]


def test_a_strength_without_a_steer_is_refused(generate):
    done = generate("--strength", "0.5", "--prompt", "x")
    assert done.code == 2
    assert done.refusal == "found the strength 0.5 without a steer; name one with --steer, or leave --strength out"
    assert generate("--strength", "0", "--prompt", "x").code == 0


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf"])
def test_a_strength_that_is_not_finite_is_refused(generate, fitted, strength):
    done = generate("--steer", fitted / "steer", "--strength", "0", "--strength", strength, "--prompt", "x")
    assert done.code == 2
    assert done.refusal.startswith(f"found the strength {strength}; wanted a finite number")


def test_an_empty_prompt_is_refused(generate):
    done = generate("--prompt", "the sun", "--prompt", "")
    assert done.code == 2
    assert done.refusal == "prompt 2 is empty; wanted text that the model can go on from"


def test_sampling_follows_the_seed(generate):
    made = [
        generate("--prompt", "the", "--temperature", "2", "--seed", seed, "--json").json for seed in ("1", "1", "2")
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_the_chat_template_wraps_the_prompt_or_is_refused(generate, chat_llama, llama):
    plain, chat = (
        generate("--prompt", "the sun", "--template", template, "--json", model=chat_llama).json
        for template in ("plain", "chat")
    )
    assert plain["generations"][0]["output"] != chat["generations"][0]["output"]
    done = generate("--prompt", "the sun", "--template", "chat")
    assert done.code == 2
    assert f"{llama} has no chat template" in done.refusal


def test_another_model_is_refused_and_the_difference_named(generate, fitted, tmp_path):
    other, wide = tiny_llama(tmp_path / "other", seed=1), tiny_llama(tmp_path / "wide", width=64)
    steered = ("--steer", fitted / "steer", "--prompt", "x")
    finetune = generate(*steered, model=other)
    assert finetune.code == 2
    assert "the steer was not fitted on this model: its weights have the fingerprint" in finetune.refusal
    assert generate(*steered, "--weights", "any", model=other).code == 0
    for weights in ("match", "any"):
        wider = generate(*steered, "--weights", weights, model=wide)
        assert wider.code == 2
        assert "model.layers.0.input_layernorm has 64 neurons, the steer has 32" in wider.refusal


@pytest.mark.parametrize(
    ("part", "damage", "words"),
    [
        ("steer.safetensors", lambda data: data[:-4], "its bytes are not those that the card was written for"),
        ("steer.safetensors", lambda data: data[:-4] + b"\0\0\1\0", "its bytes are not those"),
        ("steer.json", lambda data: data[:50], "cannot be loaded"),
        ("steer.json", lambda _: b"", "cannot be loaded"),
        ("steer.json", lambda _: b"[]", "cannot be loaded"),
        ("steer.json", lambda data: data.replace(b'"format_version": 3', b'"format_version": 9'), "format version"),
        ("steer.json", lambda data: data.replace(b'"width": 32', b'"width": 31', 1), "cannot be loaded"),
    ],
)
def test_a_damaged_steer_is_refused(generate, fitted, tmp_path, part, damage, words):
    steer = Path(shutil.copytree(fitted / "steer", tmp_path / "steer"))
    (steer / part).write_bytes(damage((steer / part).read_bytes()))
    done = generate("--steer", steer, "--prompt", "x")
    assert done.code == 2
    assert str(steer) in done.refusal
    assert words in done.refusal


def test_a_folder_without_a_steer_is_refused(generate, fitted, tmp_path):
    steer = Path(shutil.copytree(fitted / "steer", tmp_path / "steer"))
    (steer / "steer.safetensors").unlink()
    for place in (fitted, tmp_path, tmp_path / "none", steer, steer / "steer.json"):
        done = generate("--steer", place, "--prompt", "x")
        assert done.code == 2
        assert f"no steer at {place}" in done.refusal


@pytest.mark.parametrize("model", ["", "none", "none/at/all", "no/body", "none.gguf"])
def test_a_model_that_is_not_there_is_refused(generate, model):
    done = generate("--prompt", "x", model=Path(model) if model else "")
    assert done.code == 2
    assert done.refusal.startswith("no model at ")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:1", ""])
def test_a_device_that_is_not_there_is_refused(generate, device):
    done = generate("--prompt", "x", "--device", device)
    assert done.code == 2
    assert f"the device is to be {device!r}" in done.refusal


def test_a_steer_of_another_hookpoint_names_the_nearest_of_the_model(generate, fitted, tmp_path):
    gone = tiny_llama(tmp_path / "model")
    config = json.loads((gone / "config.json").read_text())
    (gone / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    done = generate("--steer", fitted / "steer", "--prompt", "x", "--weights", "any", model=gone)
    assert done.code == 2
    assert "it has no module 'model.layers.1.input_layernorm' (nearest: model.layers.0.input_layernorm" in done.refusal


def test_a_relative_folder_that_looks_like_a_hub_id_is_the_folder(actmap, llama, tmp_path):
    shutil.copytree(llama, tmp_path / "models" / "small")
    assert actmap("generate", "--model", "models/small", *FEW, "--prompt", "the sun", cwd=tmp_path).code == 0
    done = actmap("generate", "--model", "models/none", *FEW, "--prompt", "the sun", cwd=tmp_path)
    assert done.code == 2
    assert "no model at models/none" in done.refusal
