from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from act.clock import DenoisingClock
from act.errors import ClockError, HookpointNotFoundError, SiteVisitError
from act.hookpoint import Hookpoint
from pipeline.models import PackingRule, Sampling
from pipeline.models.live_bytes import LiveBytes
from tests.pipeline.models.drawing import CASES, MID, RULE, checkpoint_of, image_of, model_of
from tests.pipelines import CLIP_LIMIT

# Survey


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_every_hookpoint_is_a_site_at_every_step(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    survey = checkpoint_of(folders[name], guidance=guidance).survey(hookpoints, RULE, "cpu")
    places = [Hookpoint.parse(site.hookpoint) for site in survey.sites]
    first = [Hookpoint(place.module, place.output) for place in places if place.step == 0]
    assert places == [Hookpoint(place.module, place.output, step) for step in range(3) for place in first]
    assert len(survey.timesteps) == 3
    assert sorted(survey.timesteps, reverse=True) == list(survey.timesteps)


def test_sites_stand_in_execution_order_with_their_widths(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["sdxl"], steps=1)
    names = list(checkpoint.load("cpu").modules)
    assert names.index("unet.mid_block") > names.index("unet.up_blocks.0")
    survey = checkpoint.survey((MID, r"unet\.(up|down)_blocks\.\d"), RULE, "cpu")
    assert [(site.hookpoint, site.module_type, site.width) for site in survey.sites] == [
        ("unet.down_blocks.0@0", "DownBlock2D", 8),
        ("unet.down_blocks.1@0", "CrossAttnDownBlock2D", 16),
        ("unet.mid_block@0", "UNetMidBlock2DCrossAttn", 16),
        ("unet.up_blocks.0@0", "CrossAttnUpBlock2D", 16),
        ("unet.up_blocks.1@0", "UpBlock2D", 8),
    ]


@pytest.mark.parametrize(
    ("name", "preset", "one", "count"),
    [
        ("sdxl", "layernorms", "unet.down_blocks.1.attentions.0.transformer_blocks.0.norm1", 24),
        ("sdxl", "attention-out", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2", 16),
        ("sdxl", "mlp-out", "unet.mid_block.attentions.0.transformer_blocks.1.ff", 8),
        ("sdxl", "blocks", "unet.mid_block", 5),
        ("flux", "layernorms", "transformer.transformer_blocks.0.norm1", 11),
        ("flux", "attention-out", "transformer.transformer_blocks.0.attn", 4),
        ("flux", "mlp-out", "transformer.transformer_blocks.0.ff", 4),
        ("flux", "blocks", "transformer.transformer_blocks.0:1", 4),
    ],
)
def test_presets_choose_sites_of_one_role(folders: Mapping[str, Path], name: str, preset: str, one: str, count: int):
    survey = checkpoint_of(folders[name], steps=1, guidance=4.0).survey(preset, RULE, "cpu")
    chosen = {site.hookpoint.removesuffix("@0") for site in survey.sites}
    assert one in chosen
    assert len(chosen) == count


@pytest.mark.parametrize("pattern", [r"text_encoder\..*", r"vae\..*", "unet.no_such_thing"])
def test_only_the_denoiser_has_hookpoints(folders: Mapping[str, Path], pattern: str):
    with pytest.raises(HookpointNotFoundError):
        checkpoint_of(folders["sdxl"]).survey(pattern, RULE, "cpu")


def test_a_module_that_is_never_called_is_refused(folders: Mapping[str, Path]):
    with pytest.raises(SiteVisitError, match="never"):
        checkpoint_of(folders["sdxl"]).survey(r"unet\.down_blocks", RULE, "cpu")


def test_an_output_without_a_row_a_prompt_is_refused(folders: Mapping[str, Path]):
    with pytest.raises(ClockError, match="so its rows are no prompts"):
        checkpoint_of(folders["flux"]).survey(r"transformer\.pos_embed", RULE, "cpu")


def test_a_pipeline_that_hides_its_guidance_is_refused(folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DenoisingClock, "_doubled", lambda clock, latents: False)
    with pytest.raises(ClockError, match="2 rows for one prompt"):
        checkpoint_of(folders["sdxl"], guidance=4.0).survey(MID, RULE, "cpu")


@pytest.mark.parametrize(
    ("name", "guidance", "slack"),
    [
        pytest.param("sdxl", 4.0, 1.2, marks=pytest.mark.slow),
        ("sdxl", 0.0, 1.2),
        pytest.param("flux", 4.0, 16, marks=pytest.mark.slow),
    ],
)
def test_the_stated_bytes_of_a_forward_suffice_for_a_full_micro_batch(
    folders: Mapping[str, Path], name: str, guidance: float, slack: float
):
    rule = PackingRule("plain", 128, 256)
    checkpoint = checkpoint_of(folders[name], guidance=guidance)
    model, live = checkpoint.load("cpu"), LiveBytes()
    batch = model.pack(["a photograph"] * model.prompts_per_batch(rule), 0, rule).batches[0]
    assert len(batch.rows) > 1
    with live:
        model.forward(batch)
    stated = checkpoint.survey("mlp-out", rule, "cpu").forward_bytes
    # The tables of a tiny T5 outweigh all else, and are counted for each of the sixteen prompts.
    assert live.peak <= stated <= slack * live.peak


# Packing


def test_prompts_are_packed_in_order_with_a_seed_each(folders: Mapping[str, Path]):
    model = model_of(folders["sdxl"], seed=1000)
    packed = model.pack(["a", None, "b", "", "c", " \n", "d"], 10, RULE)
    assert [batch.rows for batch in packed.batches] == [(0, 2), (4, 6)]
    assert [batch.inputs["seeds"] for batch in packed.batches] == [(1010, 1012), (1014, 1016)]
    assert [batch.inputs["prompts"] for batch in packed.batches] == [("a", "b"), ("c", "d")]
    assert packed.num_tokens == (1, 0, 1, 0, 1, 0, 1)
    assert packed.num_truncated == 0


def test_a_unit_of_empty_prompts_runs_nothing(folders: Mapping[str, Path]):
    packed = model_of(folders["sdxl"]).pack([None, ""], 0, RULE)
    assert packed.batches == ()
    assert packed.num_tokens == (0, 0)


@pytest.mark.parametrize(
    ("name", "settings", "batch_tokens", "prompts"),
    [
        ("sdxl", {}, 128, 2),
        ("sdxl", {}, 63, 1),
        ("sdxl", {"height": 16, "width": 32}, 256, 2),
        ("sdxl", {"height": None, "width": None}, 256, 4),
        ("flux", {}, 128, 8),
        ("flux", {"height": None, "width": None}, 8192, 2),
    ],
)
def test_a_micro_batch_has_as_many_prompts_as_their_image_tokens_allow(
    folders: Mapping[str, Path], name: str, settings: dict[str, Any], batch_tokens: int, prompts: int
):
    assert model_of(folders[name], **settings).prompts_per_batch(PackingRule("plain", 128, batch_tokens)) == prompts


def test_prompts_past_the_limit_of_clip_are_counted(folders: Mapping[str, Path]):
    model = model_of(folders["sdxl"])
    fits = "a" * (CLIP_LIMIT - 2)
    assert model.pack([fits, fits + "a", "b"], 0, RULE).num_truncated == 1


def test_prompts_that_t5_reads_to_the_end_are_not_cut(folders: Mapping[str, Path]):
    model = model_of(folders["flux"])
    assert model.pack(["a" * 500, "a" * 520], 0, RULE).num_truncated == 1


def test_an_image_depends_on_its_seed_alone(folders: Mapping[str, Path]):
    model = model_of(folders["sdxl"])
    image = model.generate("a cat", Sampling(seed=3))
    assert image.size == (16, 16)
    torch.rand(3)
    assert np.array_equal(np.asarray(image), np.asarray(model.generate("a cat", Sampling(seed=3))))
    assert image_of(model, seed=3) == image.tobytes()
    assert image_of(model, seed=4) != image.tobytes()


def test_a_distilled_transformer_gets_its_guidance_as_an_input(folders: Mapping[str, Path]):
    model = model_of(folders["flux-dev"], guidance=3.5, steps=2)
    calls: list[float] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        calls.append(kwargs["guidance"].item())

    with model.root.transformer.register_forward_pre_hook(look, with_kwargs=True):
        model.generate("a cat", Sampling())
    assert calls == [3.5, 3.5]
