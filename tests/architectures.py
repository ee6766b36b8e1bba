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
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

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


#: Families whose sites do not all answer to the presets, or which are no decoders: forwards of them are run alike.
FURTHER: Mapping[str, PretrainedConfig] = {
    "bart": transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **_SIZES,
        **_EXPERTS,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, pad_token_id=0
    ),
    "gemma2": transformers.Gemma2Config(**_GROUPED, sliding_window=8),
    "gemma4_text": transformers.Gemma4TextConfig(
        **_GROUPED,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
        global_head_dim=8,
    ),
    "gpt_oss": transformers.GptOssConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "mistral": transformers.MistralConfig(**_GROUPED, sliding_window=8),
    "olmoe": transformers.OlmoeConfig(**_GROUPED, num_experts=4, num_experts_per_tok=2),
    "phi": transformers.PhiConfig(**_SIZES),
    "phi3": transformers.Phi3Config(**_GROUPED),
    "qwen2": transformers.Qwen2Config(**_GROUPED),
    "qwen3_moe": transformers.Qwen3MoeConfig(**_GROUPED, **_EXPERTS),
    "qwen3_next": transformers.Qwen3NextConfig(
        **_GROUPED,
        **_EXPERTS,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": transformers.RecurrentGemmaConfig(
        **_SIZES,
        head_dim=8,
        num_key_value_heads=2,
        lru_width=32,
        attention_window_size=8,
        block_types=["recurrent", "attention"],
    ),
    "roberta": transformers.RobertaConfig(**_SIZES),
    "rwkv": transformers.RwkvConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        intermediate_size=48,
        context_length=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "t5": transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "zamba2": transformers.Zamba2Config(
        **_SIZES,
        num_key_value_heads=4,
        mamba_d_state=4,
        mamba_headdim=8,
        n_mamba_heads=8,
        mamba_ngroups=1,
        layers_block_type=["hybrid", "hybrid"],
        num_mem_blocks=1,
        adapter_rank=4,
        chunk_size=8,
    ),
}

#: Families that are not made as decoders with a head.
_AUTO: Mapping[str, type] = {
    "albert": transformers.AutoModel,
    "bart": transformers.AutoModelForSeq2SeqLM,
    "distilbert": transformers.AutoModel,
    "roberta": transformers.AutoModel,
    "t5": transformers.AutoModelForSeq2SeqLM,
}


def tiny(family: str, attention: str | None = None) -> PreTrainedModel:
    """Returns the model of a family, in evaluation mode, with the same random weights each time.

    Args:
        family: A key of `CONFIGS` or `FURTHER`.
        attention: Its kernel, ``sdpa`` or ``eager``; None is what transformers takes.
    """
    config = CONFIGS.get(family) or FURTHER[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = _AUTO.get(family, transformers.AutoModelForCausalLM)
        return auto.from_config(config, attn_implementation=attention).eval().requires_grad_(False)


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
