from typing import Any

import pytest

from act.steer import Steer
from tests.architectures import tiny
from tests.steers import steer_for, window


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def steer(llama: Any) -> Steer:
    names = ["model.layers.0.input_layernorm", "model.layers.1.mlp", "model.norm"]
    return steer_for(llama, {name: window(32, seed) for seed, name in enumerate(names)})
