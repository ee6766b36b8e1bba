from itertools import product

import pytest
import torch

from act.errors import HookpointOutputError, ShapeError, SiteVisitError
from act.hookpoint import PRESETS, modules_of, select
from schemas.plan import Site
from tests.architectures import CONFIGS, smollm2, tiny, tokens
from tests.visiting import Backwards, hooks, look

#: What each family has; without ALBERT, which calls one block several times, and OPT's norms, which flatten tokens.
WITHOUT_MLP = ("bert", "mamba", "opt")
VISITED = [
    (family, preset)
    for family, preset in product(sorted(set(CONFIGS) - {"albert"}), PRESETS)
    if (family, preset) != ("opt", "layernorms") and (preset != "mlp-out" or family not in WITHOUT_MLP)
]


def test_order_is_that_of_execution() -> None:
    model = Backwards()
    assert [str(found) for found in select(["last", "first", "optional"], modules_of(model))] == [
        "last", "first", "optional",
    ]  # fmt: skip
    sites = look(model, ["last", "first", "optional"], lambda: model(torch.ones(2, 4)))
    assert sites == [Site("first", "Linear", 5), Site("optional", "Linear", 5), Site("last", "Linear", 6)]


def test_order_differs_from_registration_in_a_real_model() -> None:
    model = tiny("opt")
    pattern = r"model\.decoder\.(final_layer_norm|layers\.\d\.self_attn_layer_norm)"
    registered = [str(found) for found in select(pattern, modules_of(model))]
    sites = look(model, pattern, lambda: model(input_ids=tokens(2, 5)), tokens=5)
    assert registered[0] == "model.decoder.final_layer_norm"
    assert [site.hookpoint for site in sites] == registered[1:] + registered[:1]


def test_widths_and_types_are_those_of_the_outputs() -> None:
    model = tiny("llama")
    pattern = r"model\.norm|.*\.gate_proj|.*\.k_proj|lm_head|.*embed_tokens"
    sites = look(model, pattern, lambda: model(input_ids=tokens(2, 5)), tokens=5)
    assert [(site.hookpoint.rpartition(".")[2], site.module_type, site.width) for site in sites[:3]] == [
        ("embed_tokens", "Embedding", 32), ("k_proj", "Linear", 16), ("gate_proj", "Linear", 48),
    ]  # fmt: skip
    assert sites[-2:] == [Site("model.norm", "LlamaRMSNorm", 32), Site("lm_head", "Linear", 64)]


@pytest.mark.parametrize(("family", "preset"), VISITED)
def test_every_preset_is_visited_once_a_forward(family: str, preset: str) -> None:
    model = tiny(family)
    sites = look(model, preset, lambda: model(input_ids=tokens(2, 6)), tokens=6)
    assert {site.hookpoint for site in sites} == {str(found) for found in select(preset, modules_of(model))}
    assert {site.width for site in sites} == {32}


def test_smollm2_has_61_sites() -> None:
    model = smollm2()
    sites = look(model, "layernorms", lambda: model(input_ids=tokens(1, 4)), tokens=4)
    assert len(sites) == 61
    assert sites[0].hookpoint == "model.layers.0.input_layernorm"
    assert sites[-1].hookpoint == "model.norm"


def test_sites_of_a_whole_model_have_the_places_of_its_output() -> None:
    model = tiny("llama")
    sites = look(model, ["model", "blocks"], lambda: model(input_ids=tokens(2, 5)), tokens=5)
    assert sites[-1] == Site("model", "LlamaModel", 32)


@pytest.mark.parametrize("hookpoints", ["never", ["first", "never"]])
def test_a_module_that_is_never_called_is_refused(hookpoints: str | list[str]) -> None:
    model = Backwards()
    with pytest.raises(SiteVisitError, match="hookpoint never is called never in a forward; wanted exactly once"):
        look(model, hookpoints, lambda: model(torch.ones(2, 4)))
    assert hooks(model) == 0


def test_a_module_that_is_called_twice_is_refused() -> None:
    model = tiny("albert")
    with pytest.raises(SiteVisitError, match=r"attention is called 2 times in a forward; wanted exactly once"):
        look(model, "attention-out", lambda: model(input_ids=tokens(2, 5)))
    assert hooks(model) == 0


def test_outputs_that_flatten_the_tokens_are_refused_by_name() -> None:
    model = tiny("opt")
    with pytest.raises(ShapeError, match=r"layers.0.final_layer_norm has the shape \[10, 32\]; wanted \[batch, 5 tok"):
        look(model, "layernorms", lambda: model(input_ids=tokens(2, 5)), tokens=5)
    assert hooks(model) == 0


def test_outputs_without_a_tensor_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(HookpointOutputError, match=r"hookpoint model.layers.0.self_attn:2 returned a tuple of"):
        look(model, r".*self_attn:2", lambda: model(input_ids=tokens(2, 5)))
