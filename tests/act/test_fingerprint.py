import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from act.fingerprint import SAMPLES, fingerprint
from tests.architectures import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


def test_it_is_the_same_for_the_same_weights(llama: Any) -> None:
    assert fingerprint(llama) == fingerprint(tiny("llama")) == fingerprint(copy.deepcopy(llama))
    assert len(fingerprint(llama)) == 64


@pytest.mark.slow
def test_it_is_the_same_in_another_process() -> None:
    imports = "from act.fingerprint import fingerprint; from tests.architectures import tiny"
    code = f"{imports}; print(fingerprint(tiny('llama')))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == fingerprint(tiny("llama"))


def test_a_model_rounded_to_bfloat16_keeps_it(llama: Any) -> None:
    narrow = copy.deepcopy(llama).to(torch.bfloat16)
    assert fingerprint(narrow) == fingerprint(llama)
    assert fingerprint(narrow.to(torch.float64)) == fingerprint(llama)


def test_mode_gradients_and_buffers_do_not_count(llama: Any) -> None:
    other = copy.deepcopy(llama).train().requires_grad_(True)
    other.register_buffer("more", torch.ones(3))
    assert fingerprint(other) == fingerprint(llama)


def test_layout_does_not_count() -> None:
    model, other = nn.Linear(6, 4), nn.Linear(6, 4)
    other.weight = nn.Parameter(model.weight.detach().t().contiguous().t())
    other.bias = model.bias
    assert not other.weight.is_contiguous()
    assert fingerprint(other) == fingerprint(model)


def test_a_finetune_another_shape_and_another_name_are_found(llama: Any) -> None:
    finetune: Any = copy.deepcopy(llama)
    finetune.model.norm.weight.mul_(1.02)
    pruned = copy.deepcopy(llama)
    del pruned.model.layers[1]
    model: Any = nn.Sequential(nn.Linear(6, 4))
    renamed = nn.ModuleDict({"x": model[0]})
    reshaped: Any = nn.Sequential(nn.Linear(4, 6))
    reshaped[0].weight = nn.Parameter(model[0].weight.detach().reshape(6, 4))
    reshaped[0].bias = model[0].bias
    prints = [fingerprint(found) for found in (llama, finetune, pruned, model, renamed, reshaped)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("count", [1, 2, SAMPLES - 1, SAMPLES, SAMPLES + 1, 1000])
def test_first_and_last_values_count_whatever_their_number(count: int) -> None:
    def of(values: torch.Tensor) -> str:
        return fingerprint(nn.ParameterList([nn.Parameter(values)]))

    values = torch.arange(float(count))
    for place in (0, count - 1):
        changed = values.clone()
        changed[place] += 100
        assert of(changed) != of(values)


def test_odd_parameters_are_no_trouble() -> None:
    odd = nn.ParameterList(
        [
            nn.Parameter(torch.empty(0)),
            nn.Parameter(torch.tensor(1.5)),
            nn.Parameter(torch.tensor([torch.nan, torch.inf])),
            nn.Parameter(torch.arange(20, dtype=torch.int8), requires_grad=False),
            nn.Parameter(torch.empty(3, device="meta")),
        ]
    )
    assert fingerprint(odd) == fingerprint(odd)
    assert len(fingerprint(nn.Identity())) == 64


class Pipeline:
    """What of a diffusers pipeline counts: its components, by name."""

    def __init__(self, **components: Any) -> None:
        self.components = components


def test_of_a_pipeline_every_module_counts_whatever_their_order() -> None:
    unet, encoder = nn.Linear(3, 3), nn.Linear(2, 2)
    found = fingerprint(Pipeline(unet=unet, text_encoder=encoder, scheduler=object(), text_encoder_2=None))
    assert found == fingerprint(Pipeline(text_encoder=encoder, unet=unet))
    other = copy.deepcopy(encoder)
    other.weight.data += 1
    assert fingerprint(Pipeline(unet=unet, text_encoder=other)) != found
    assert fingerprint(Pipeline(unet=unet)) != found
    assert fingerprint(Pipeline(unet=encoder, text_encoder=unet)) != found
