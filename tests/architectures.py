"""Tiny transformers models of many families, made from configurations alone: no hub, no download."""

from collections.abc import Mapping

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

#: Two blocks of width 32, and few of everything else.
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "head_dim": 8}

CONFIGS: Mapping[str, PretrainedConfig] = {
    "albert": transformers.AlbertConfig(**_SIZES, embedding_size=16),
    "bert": transformers.BertConfig(**_SIZES, is_decoder=True),
    "bloom": transformers.BloomConfig(
        vocab_size=64, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "falcon": transformers.FalconConfig(
        **{key: value for key, value in _SIZES.items() if key != "intermediate_size"}, new_decoder_architecture=False
    ),
    "gemma3_text": transformers.Gemma3TextConfig(**_GROUPED, sliding_window=8),
    "gpt2": transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**_SIZES),
    "jamba": transformers.JambaConfig(
        **(_SIZES | {"num_key_value_heads": 2}),
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "llama": transformers.LlamaConfig(**_GROUPED),
    "mamba": transformers.MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "mixtral": transformers.MixtralConfig(**_GROUPED, num_local_experts=2, num_experts_per_tok=1),
    "olmo2": transformers.Olmo2Config(**(_SIZES | {"num_key_value_heads": 2})),
    "opt": transformers.OPTConfig(
        **{key: value for key, value in _SIZES.items() if key != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "qwen3": transformers.Qwen3Config(**_GROUPED),
}


def tiny(family: str) -> PreTrainedModel:
    """Returns the model of a family, in evaluation mode, with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = transformers.AutoModel if family == "albert" else transformers.AutoModelForCausalLM
        return auto.from_config(CONFIGS[family]).eval().requires_grad_(False)


def smollm2() -> PreTrainedModel:
    """Returns a model with the modules of SmolLM2-135M, narrower."""
    config = transformers.LlamaConfig(**(_GROUPED | {"num_hidden_layers": 30}))
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Returns random token ids, `[rows, length]`, none of them special."""
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a transformers model."""
    with torch.no_grad():
        return model(input_ids=tokens(2, 5) if ids is None else ids).logits
