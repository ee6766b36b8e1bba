from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast

from act.errors import HookpointNotFoundError, HookpointOutputError, HookpointPatternError
from act.hookpoint import Hookpoint, modules_of, nearest, select
from tests.architectures import tiny


def chosen(model: nn.Module, hookpoints: str | list[str]) -> list[str]:
    return [str(hookpoint) for hookpoint in select(hookpoints, modules_of(model))]


def test_a_pattern_must_match_the_whole_name() -> None:
    model, both = tiny("llama"), ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert chosen(model, r"model\.layers\.\d+\.mlp") == both
    assert chosen(model, r".*\.mlp") == both
    assert chosen(model, r"model\.layers\.\d") == ["model.layers.0", "model.layers.1"]
    for part in ("mlp", r"layers\.\d+\.mlp", r"model\.layers\.\d+\.ml", r"\.mlp$"):
        with pytest.raises(HookpointNotFoundError):
            select(part, modules_of(model))


def test_a_pattern_may_name_an_output() -> None:
    assert chosen(tiny("llama"), r".*self_attn:1") == [
        "model.layers.0.self_attn:1",
        "model.layers.1.self_attn:1",
    ]
    assert chosen(tiny("llama"), r"model\.(?:norm|embed_tokens)") == ["model.embed_tokens", "model.norm"]


def test_several_are_joined_once_each_in_registration_order() -> None:
    found = chosen(tiny("llama"), ["model.norm", "layernorms", r"model\.layers\.1", r"model\.norm:0", r"model\.norm:1"])
    assert found == [
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
        "model.layers.1",
        "model.layers.1.input_layernorm",
        "model.layers.1.post_attention_layernorm",
        "model.norm",
        "model.norm:1",
    ]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("layernorm", "layernorms"),
        ("layer-norms", "layernorms"),
        ("attention_out", "attention-out"),
        ("mlpout", "mlp-out"),
        ("block", "blocks"),
        ("model.norms", "model.norm"),
        (r"model\.layers\.0\.mlps", "model.layers.0.mlp"),
        ("model.layers.2.self_attn", "model.layers.0.self_attn"),
    ],
)
def test_unknown_names_list_the_nearest(name: str, close: str) -> None:
    with pytest.raises(HookpointNotFoundError) as caught:
        select(name, modules_of(tiny("llama")))
    assert close in caught.value.nearest
    assert 1 <= len(caught.value.nearest) <= 3
    assert close in str(caught.value)


def test_what_resembles_nothing_still_shows_real_names() -> None:
    modules = modules_of(tiny("llama"))
    with pytest.raises(HookpointNotFoundError) as caught:
        select("##########", modules)
    assert set(caught.value.nearest) <= set(modules)
    assert nearest("x", []) == ()


def test_a_preset_that_matches_nothing_is_not_its_own_suggestion() -> None:
    with pytest.raises(HookpointNotFoundError) as caught:
        select("mlp-out", modules_of(tiny("opt")))
    assert "mlp-out" not in caught.value.nearest


@pytest.mark.parametrize("pattern", ["(", "model.*[", "*", "(?P<x", "a{2,1}"])
def test_what_is_no_expression_is_refused(pattern: str) -> None:
    with pytest.raises(HookpointPatternError, match="no regular expression"):
        select(pattern, modules_of(tiny("llama")))


def test_no_hookpoints_are_refused() -> None:
    with pytest.raises(HookpointPatternError, match="the list is empty"):
        select([], modules_of(tiny("llama")))


module_names = st.from_regex(r"[a-z_]+(\.[a-z0-9_]+){0,3}", fullmatch=True)
places = st.none() | st.integers(0, 1000)


@given(module_names, places, places)
def test_a_hookpoint_comes_back_from_its_name(module: str, output: int | None, step: int | None) -> None:
    hookpoint = Hookpoint(module, output, step)
    assert Hookpoint.parse(str(hookpoint)) == hookpoint


@pytest.mark.parametrize("written", ["", "\n"])
def test_a_name_without_a_module_is_refused(written: str) -> None:
    with pytest.raises(HookpointPatternError, match="names no module"):
        Hookpoint.parse(written)


A, B, NEW = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 7.0)
Pair = namedtuple("Pair", ["left", "right"])


PARTS: list[Any] = [(A, B), [A, B], Pair(A, B), {"x": A, "y": B}, OrderedDict(y=A, x=B)]


@pytest.mark.parametrize("returned", PARTS, ids=lambda returned: type(returned).__name__)
def test_each_part_of_an_output_is_read_and_replaced(returned: Any) -> None:
    def parts(output: Any) -> list[torch.Tensor]:
        return list(output.values() if isinstance(output, dict) else output)

    for hookpoint, place in ((Hookpoint("m"), 0), (Hookpoint("m", 0), 0), (Hookpoint("m", 1), 1)):
        assert hookpoint.of(returned) is (A, B)[place]
        moved = hookpoint.put(returned, NEW)
        assert type(moved) is type(returned)
        assert parts(moved)[place] is NEW
        assert parts(moved)[1 - place] is (A, B)[1 - place]
        assert [id(part) for part in parts(returned)] == [id(A), id(B)]
    if isinstance(returned, dict):
        assert list(Hookpoint("m", 1).put(returned, NEW)) == list(returned)


def test_model_outputs_are_read_and_replaced_by_place_and_by_name() -> None:
    returned = BaseModelOutputWithPast(last_hidden_state=A, hidden_states=(B,))
    moved = Hookpoint("m").put(returned, NEW)
    assert type(moved) is BaseModelOutputWithPast
    assert moved.last_hidden_state is moved["last_hidden_state"] is moved[0] is NEW
    assert moved.hidden_states == (B,)
    assert returned.last_hidden_state is returned[0] is A
    assert Hookpoint("m").of(returned) is A


def test_a_tensor_is_its_own_first_part() -> None:
    for hookpoint in (Hookpoint("m"), Hookpoint("m", 0)):
        assert hookpoint.of(A) is A
        assert hookpoint.put(A, NEW) is NEW


@dataclass
class Opaque:
    """An output of no known form."""

    hidden: torch.Tensor


@pytest.mark.parametrize(
    ("hookpoint", "returned", "found"),
    [
        (Hookpoint("m", 1), A, "a Tensor of torch.float32"),
        (Hookpoint("m", 2), (A, B), "a tuple of Tensor, Tensor"),
        (Hookpoint("m", 1), (A, None), "a tuple of Tensor, NoneType"),
        (Hookpoint("m"), (), "a tuple of nothing"),
        (Hookpoint("m"), (None, A), "a tuple of NoneType, Tensor"),
        (Hookpoint("m"), None, "a NoneType"),
        (Hookpoint("m"), Opaque(A), "a Opaque"),
        (Hookpoint("m"), ((A,), B), "a tuple of tuple, Tensor"),
        (Hookpoint("m"), torch.arange(3), "a Tensor of torch.int64"),
        (Hookpoint("m", 1), BaseModelOutput(last_hidden_state=A), "a BaseModelOutput of Tensor"),
    ],
)
def test_an_output_without_a_tensor_there_is_refused(hookpoint: Hookpoint, returned: Any, found: str) -> None:
    with pytest.raises(HookpointOutputError) as caught:
        hookpoint.of(returned)
    assert f"hookpoint {hookpoint} returned {found} without" in str(caught.value)


def test_modules_are_named_without_the_model_itself() -> None:
    model = tiny("llama")
    modules = modules_of(model)
    assert "" not in modules
    assert modules["model.layers.0.mlp"] is model.model.layers[0].mlp


def test_modules_of_a_pipeline_begin_with_their_component() -> None:
    class Pipeline:
        components: ClassVar = {"unet": nn.Sequential(nn.Linear(2, 2)), "tokenizer": object(), "safety_checker": None}

    modules = modules_of(Pipeline())
    assert list(modules) == ["unet", "unet.0"]
