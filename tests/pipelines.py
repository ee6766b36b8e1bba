"""Tiny diffusers pipelines, made from configurations alone and saved to a folder: no hub, no download."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

#: Text encoders of both pipelines: hidden size, and the width of the projected prompt.
HIDDEN, PROJECTED = 16, 8

#: Most tokens of a prompt that CLIP reads, begin and end included.
CLIP_LIMIT = 16


def tiny_sdxl(folder: Path) -> Path:
    """Writes a pipeline like Stable Diffusion XL, with 8 x 8 latents of four channels; returns its folder."""
    with _seeded(0):
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(latent_channels=4),
            text_encoder=CLIPTextModel(_clip_config()),
            text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_clip_tokenizer(),
            unet=UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                cross_attention_dim=2 * HIDDEN,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=PROJECTED + 6 * 4,
            ),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        )
    pipeline.save_pretrained(folder)
    return folder


def tiny_flux(folder: Path, guidance_embeds: bool = False) -> Path:
    """Writes a pipeline like FLUX.1 schnell, or like dev with `guidance_embeds`; returns its folder.

    Its tokens are 2 x 2 latents. Its own size of 256 x 256 is large for a test: draw 16 x 16, which is 4 x 4 tokens.
    """
    with _seeded(1):
        pipeline = FluxPipeline(
            vae=_vae(latent_channels=4),
            text_encoder=CLIPTextModel(_clip_config()),
            text_encoder_2=T5EncoderModel(
                T5Config(vocab_size=len(_pieces()), d_model=HIDDEN, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=T5Tokenizer(vocab=_pieces(), extra_ids=0),
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=HIDDEN,
                pooled_projection_dim=HIDDEN,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=guidance_embeds,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder


def _vae(latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=latent_channels,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.0,
    )


def _clip_config() -> CLIPTextConfig:
    vocab = _clip_vocab()
    return CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=HIDDEN,
        intermediate_size=16,
        projection_dim=PROJECTED,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LIMIT,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )


def _clip_vocab() -> dict[str, int]:
    signs = [*string.ascii_lowercase, *string.digits]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def _clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer that spells: a token a letter."""
    return CLIPTokenizer(vocab=_clip_vocab(), merges=[], model_max_length=CLIP_LIMIT)


def _pieces() -> list[tuple[str, float]]:
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((sign, -2.0) for sign in "▁" + string.ascii_lowercase)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context whose random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
