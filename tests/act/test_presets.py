import pytest
from torch import nn

from act.errors import HookpointNotFoundError
from act.hookpoint import PRESETS, Hookpoint, modules_of, select
from tests.architectures import smollm2, tiny


def chosen(model: nn.Module, hookpoints: str | list[str]) -> list[str]:
    return [str(hookpoint) for hookpoint in select(hookpoints, modules_of(model))]


def each_block(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}.{block}.{name}" for block in (0, 1) for name in names]


PRE, POST = "input_layernorm", "post_attention_layernorm"
DECODER, GPT = "model.layers", "transformer.h"
ROLES: dict[str, dict[str, list[str]]] = {
    "albert": {
        "layernorms": ["embeddings.LayerNorm", "encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm"],
        "attention-out": ["encoder.albert_layer_groups.0.albert_layers.0.attention"],
        "mlp-out": [],
        "blocks": ["encoder.albert_layer_groups.0"],
    },
    "bert": {
        "layernorms": [
            "bert.embeddings.LayerNorm",
            *each_block("bert.encoder.layer", "attention.output.LayerNorm", "output.LayerNorm"),
            "cls.predictions.transform.LayerNorm",
        ],
        "attention-out": each_block("bert.encoder.layer", "attention"),
        "mlp-out": [],
        "blocks": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    },
    "bloom": {
        "layernorms": ["transformer.word_embeddings_layernorm", *each_block(GPT, PRE, POST), "transformer.ln_f"],
        "attention-out": each_block(GPT, "self_attention"),
        "mlp-out": each_block(GPT, "mlp"),
        "blocks": ["transformer.h.0", "transformer.h.1"],
    },
    "falcon": {
        "layernorms": [*each_block(GPT, PRE), "transformer.ln_f"],
        "attention-out": each_block(GPT, "self_attention"),
        "mlp-out": each_block(GPT, "mlp"),
        "blocks": ["transformer.h.0", "transformer.h.1"],
    },
    "gemma3_text": {
        "layernorms": [
            *each_block(DECODER, PRE, POST, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
            "model.norm",
        ],
        "attention-out": each_block(DECODER, "self_attn"),
        "mlp-out": each_block(DECODER, "mlp"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
    "gpt2": {
        "layernorms": [*each_block(GPT, "ln_1", "ln_2"), "transformer.ln_f"],
        "attention-out": each_block(GPT, "attn"),
        "mlp-out": each_block(GPT, "mlp"),
        "blocks": ["transformer.h.0", "transformer.h.1"],
    },
    "gpt_neox": {
        "layernorms": [*each_block("gpt_neox.layers", PRE, POST), "gpt_neox.final_layer_norm"],
        "attention-out": each_block("gpt_neox.layers", "attention"),
        "mlp-out": each_block("gpt_neox.layers", "mlp"),
        "blocks": ["gpt_neox.layers.0", "gpt_neox.layers.1"],
    },
    # Its second block is a JambaAttentionDecoderLayer, which is no attention.
    "jamba": {
        "layernorms": [*each_block(DECODER, PRE, "pre_ff_layernorm"), "model.final_layernorm"],
        "attention-out": ["model.layers.0.mamba", "model.layers.1.self_attn"],
        "mlp-out": each_block(DECODER, "feed_forward"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
    "llama": {
        "layernorms": [*each_block(DECODER, PRE, POST), "model.norm"],
        "attention-out": each_block(DECODER, "self_attn"),
        "mlp-out": each_block(DECODER, "mlp"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
    "mamba": {
        "layernorms": [*each_block("backbone.layers", "norm"), "backbone.norm_f"],
        "attention-out": each_block("backbone.layers", "mixer"),
        "mlp-out": [],
        "blocks": ["backbone.layers.0", "backbone.layers.1"],
    },
    "mixtral": {
        "layernorms": [*each_block(DECODER, PRE, POST), "model.norm"],
        "attention-out": each_block(DECODER, "self_attn"),
        "mlp-out": each_block(DECODER, "mlp"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
    "olmo2": {
        "layernorms": [*each_block(DECODER, POST, "post_feedforward_layernorm"), "model.norm"],
        "attention-out": each_block(DECODER, "self_attn"),
        "mlp-out": each_block(DECODER, "mlp"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
    "opt": {
        "layernorms": [
            "model.decoder.final_layer_norm",
            *each_block("model.decoder.layers", "self_attn_layer_norm", "final_layer_norm"),
        ],
        "attention-out": each_block("model.decoder.layers", "self_attn"),
        "mlp-out": [],
        "blocks": ["model.decoder.layers.0", "model.decoder.layers.1"],
    },
    "qwen3": {
        "layernorms": [*each_block(DECODER, PRE, POST), "model.norm"],
        "attention-out": each_block(DECODER, "self_attn"),
        "mlp-out": each_block(DECODER, "mlp"),
        "blocks": ["model.layers.0", "model.layers.1"],
    },
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", ROLES)
def test_presets_name_roles(family: str, preset: str) -> None:
    model, wanted = tiny(family), ROLES[family][preset]
    if wanted:
        assert chosen(model, preset) == wanted
    else:
        with pytest.raises(HookpointNotFoundError, match=f"hookpoint '{preset}' matches no module"):
            select(preset, modules_of(model))


def test_there_is_a_norm_of_queries_that_is_left_out() -> None:
    norms = [name for name in modules_of(tiny("qwen3")) if name.endswith(("q_norm", "k_norm"))]
    assert len(norms) == 4
    assert not set(norms) & set(chosen(tiny("qwen3"), "layernorms"))


def test_smollm2_has_61_norms() -> None:
    assert len(chosen(smollm2(), "layernorms")) == 61


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("LlamaAttention", "attention-out"),
        ("GPTNeoXSdpaAttention", "attention-out"),
        ("MistralFlashAttention2", "attention-out"),
        ("Mamba2Mixer", "attention-out"),
        ("Qwen3NextGatedDeltaNet", "attention-out"),
        ("MllamaCrossAttentionDecoderLayer", None),
        ("CrossAttnDownBlock2D", None),
        ("UNetMidBlock2DCrossAttn", None),
        ("MixerLayer", None),
        ("T5LayerNorm", "layernorms"),
        ("LlamaRMSNorm", "layernorms"),
        ("RmsNorm", "layernorms"),
        ("BatchNorm2d", None),
        ("GPT2MLP", "mlp-out"),
        ("FeedForward", "mlp-out"),
        ("Qwen3MoeSparseMoeBlock", "mlp-out"),
        ("DeepseekV3MoE", "mlp-out"),
        ("Linear", None),
    ],
)
def test_a_role_is_told_by_the_class(kind: str, preset: str | None) -> None:
    modules = {"model": nn.Module(), "model.it": type(kind, (nn.Module,), {})()}
    for asked in PRESETS:
        if asked == preset:
            assert select(asked, modules) == (Hookpoint("model.it"),)
        else:
            with pytest.raises(HookpointNotFoundError):
                select(asked, modules)
