"""The real model of the demo: a steer that anyone sees, and maps that agree with a fit without a line of ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.demo import PROMPTS, SPEC, TOPIC, find_model, topic_words
from jobs.fit import fit
from jobs.generate import generate, load_model
from pipeline.models import Sampling
from pipeline.prompts import select
from schemas.job import read_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("model.layers.0.input_layernorm", "model.layers.17.post_attention_layernorm", "model.norm")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    find_model()
    folder = tmp_path_factory.mktemp("music")
    return fit(SPEC, folder / "run", folder / "cache"), folder / "run"


def test_the_music_steer_turns_a_real_model_to_music(music):
    fitted, _ = music
    model = load_model(str(find_model()), "float32", "cpu", Path("unused"))
    made = list(generate(model, fitted.steer, PROMPTS[:4], [0.0, 1.0], Sampling()))
    plain, steered = ([one.output for one in made if one.strength == strength] for strength in (0.0, 1.0))
    assert topic_words(plain) <= 1
    assert topic_words(steered) >= 2
    assert sum(TOPIC.search(text) is not None for text in steered) >= 3


@pytest.mark.parametrize("site", SITES)
def test_the_maps_of_the_real_model_agree_with_an_independent_fit(music, site):
    _, run = music
    job = read_job(SPEC).located(SPEC.parent)
    model = AutoModelForCausalLM.from_pretrained(find_model()).eval()
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    rows: list[np.ndarray] = []
    model.get_submodule(site).register_forward_hook(
        lambda _, __, output: rows.append(output[0].double().mean(0).numpy())
    )
    laws = []
    for side in (job.source, job.target):
        rows.clear()
        with torch.no_grad():
            for text in (text for batch in select(side) for text in batch.texts.to_pylist()):
                model(torch.tensor([tokenizer(text)["input_ids"][:64]]), use_cache=False)
        laws.append(np.stack(rows))
    a, b = laws
    x, y = np.sort(a - a.mean(0), axis=0), np.sort(b - b.mean(0), axis=0)
    scale = (x * y).sum(0) / (x * x).sum(0)
    shift = b.mean(0) - scale * a.mean(0)
    found = load_file(run / "steer" / "steer.safetensors")
    np.testing.assert_allclose(found[f"{site}.scale"], scale, rtol=1e-4)
    np.testing.assert_allclose(found[f"{site}.shift"], shift, rtol=1e-4, atol=1e-4 * np.abs(b).max())
