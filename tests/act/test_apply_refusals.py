import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import act
from act.errors import OtherModelError, ShapeError, StrengthError
from act.fingerprint import fingerprint
from act.steer import Steer
from tests.architectures import CONFIGS, run, tiny
from tests.steers import (
    state,
    steer_for,
    window,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_not_finite_is_refused(llama: Any, steer: Steer, strength: float) -> None:
    before = state(llama)
    with pytest.raises(StrengthError, match="found the strength .*; wanted a finite number"):  # noqa: RUF043
        act.apply(steer, llama, strength=strength).__enter__()
    assert state(llama) == before


def test_outside_of_pytest_other_types_are_refused_and_whole_numbers_accepted() -> None:
    # Under pytest the checker of types speaks first.
    code = """
import numpy, torch, act
from act.errors import StrengthError
from act.apply import _finite
for wrong in ("0.5", "", None, [0.5], {"a": 1.0}, 1j, torch.ones(2), 10**400, b"1"):
    try:
        _finite(wrong)
    except StrengthError as error:
        assert "wanted a finite number" in str(error)
    else:
        raise SystemExit(f"accepted {wrong!r}")
assert [_finite(right) for right in (1, 0, numpy.float32(0.5), torch.tensor(0.5))] == [1.0, 0.0, 0.5, 0.5]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_model_without_a_site_is_refused(llama: Any, steer: Steer) -> None:
    gpt2 = tiny("gpt2")
    with pytest.raises(OtherModelError, match=r"it has no module 'model.layers.0.input_layernorm' \(nearest: "):
        act.apply(steer, gpt2, weights="any").__enter__()


def test_a_model_of_another_width_is_refused(steer: Steer) -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    config.hidden_size = 64
    wider = type(tiny("llama"))(config)
    before = state(wider)
    sentence = "the steer was not fitted on this model: model.layers.0.input_layernorm has 64 neurons, the steer has 32"
    with pytest.raises(OtherModelError) as caught:
        act.apply(steer, wider, weights="any").__enter__()
    assert str(caught.value) == sentence
    assert state(wider) == before


def test_a_width_that_only_running_shows_is_refused_then() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    steer = steer_for(model, {"0": window(5)})
    before = state(model)
    with pytest.raises(OtherModelError, match="0 has 6 neurons, the steer has 5"), act.apply(steer, model):
        model(torch.zeros(1, 4))
    assert state(model) == before


def test_an_output_without_an_axis_of_neurons_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(0))
    with pytest.raises(ShapeError), act.apply(steer_for(model, {"0": window(4)}), model):
        model(torch.zeros(2, 2))


def test_other_weights_are_refused_and_a_finetune_let_through(steer: Steer) -> None:
    finetune = tiny("llama")
    for parameter in finetune.parameters():
        parameter.mul_(1.01)
    with pytest.raises(OtherModelError) as caught:
        act.apply(steer, finetune).__enter__()
    found, wanted = fingerprint(finetune)[:12], steer.card.model_fingerprint[:12]
    assert found != wanted
    assert f"fingerprint {found}, those that the steer was fitted on {wanted}" in str(caught.value)
    assert "pass weights='any' (--weights any) if it is a finetune of the same model" in str(caught.value)
    plain = run(finetune)
    with act.apply(steer, finetune, weights="any"):
        assert not torch.equal(run(finetune), plain)


def test_a_steer_of_a_pipeline_is_refused_on_a_module(llama: Any, steer: Steer) -> None:
    other = Steer(dataclasses.replace(steer.card, timesteps=(999.0,)), steer.maps)
    with pytest.raises(OtherModelError, match="fitted on a text-to-image pipeline; this model has no denoiser"):
        act.apply(other, llama, weights="any").__enter__()
