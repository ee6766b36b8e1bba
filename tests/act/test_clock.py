from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from act.clock import DenoisingClock, StillClock
from act.errors import ClockError
from tests.pipelines import tiny_flux, tiny_sdxl


class Denoiser(nn.Module):
    """A denoiser that only shows what it was called with."""

    def forward(self, hidden_states: torch.Tensor, timestep: Any) -> torch.Tensor:
        return hidden_states


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _loaded(tiny_sdxl(tmp_path_factory.mktemp("sdxl")))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _loaded(tiny_flux(tmp_path_factory.mktemp("flux")))


def _loaded(folder: Path) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _follow(pipeline: Any, clock: DenoisingClock, **settings: Any) -> list[tuple[int, slice]]:
    """Step and rows of each call of the denoiser while the pipeline draws two images of 16 x 16."""
    calls: list[tuple[int, slice]] = []
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    watch = denoiser.register_forward_hook(
        lambda module, args, output: calls.append((clock.step, clock.rows(_len(output))))
    )
    with clock.following(), watch:
        pipeline(
            prompt=["a cat", "a dog"],
            height=16,
            width=16,
            output_type="latent",
            generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
            **settings,
        )
    return calls


def _len(output: Any) -> int:
    return len(output[0])


def test_a_still_clock_has_no_step_and_takes_every_row():
    clock = StillClock()
    with clock.following():
        assert clock.step is None
        assert clock.rows(3) == slice(0, 3)


def test_a_pipeline_without_a_denoiser_is_refused():
    with pytest.raises(ClockError, match="no unet and no transformer"):
        DenoisingClock(SimpleNamespace(unet=None))


def test_before_the_first_call_no_step_is_running(sdxl: Any):
    clock = DenoisingClock(sdxl)
    with pytest.raises(ClockError, match="not been called yet"):
        _ = clock.step
    with pytest.raises(ClockError, match="not been called yet"):
        clock.rows(2)


def test_a_call_without_a_timestep_is_refused():
    pipeline = SimpleNamespace(transformer=nn.Identity())
    with DenoisingClock(pipeline).following(), pytest.raises(ClockError, match="without a timestep"):
        pipeline.transformer(torch.zeros(1, 2))


def test_steps_are_numbered_as_they_appear_and_again_the_same_in_the_next_image(sdxl: Any):
    clock = DenoisingClock(sdxl)
    for _ in range(2):
        assert _follow(sdxl, clock, num_inference_steps=3, guidance_scale=0) == [(n, slice(0, 2)) for n in range(3)]
    assert clock.timesteps == tuple(sdxl.scheduler.timesteps.tolist())
    assert len(set(clock.timesteps)) == 3


def test_a_guided_unet_gets_both_halves_at_once_and_the_second_is_conditional(sdxl: Any):
    calls = _follow(sdxl, DenoisingClock(sdxl), num_inference_steps=2, guidance_scale=5)
    assert calls == [(0, slice(2, 4)), (1, slice(2, 4))]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_scheduler_that_scales_its_latents_changes_nothing(sdxl: Any):
    euler = diffusers.EulerDiscreteScheduler.from_config(sdxl.scheduler.config)
    pipeline = type(sdxl)(**{**sdxl.components, "scheduler": euler})
    pipeline.set_progress_bar_config(disable=True)
    calls = _follow(pipeline, DenoisingClock(pipeline), num_inference_steps=2, guidance_scale=5)
    assert calls == [(0, slice(2, 4)), (1, slice(2, 4))]


def test_a_transformer_without_guidance_is_called_once_a_step(flux: Any):
    clock = DenoisingClock(flux)
    assert _follow(flux, clock, num_inference_steps=2) == [(0, slice(0, 2)), (1, slice(0, 2))]
    assert clock.timesteps == tuple((flux.scheduler.timesteps / 1000).tolist())


def test_the_second_call_of_true_guidance_has_no_rows(flux: Any):
    calls = _follow(flux, DenoisingClock(flux), num_inference_steps=2, true_cfg_scale=4, negative_prompt=["", ""])
    assert calls == [(0, slice(0, 2)), (0, slice(0, 0)), (1, slice(0, 2)), (1, slice(0, 0))]


def test_two_images_from_the_same_latents_in_one_step_are_both_read(flux: Any):
    latents = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    clock = DenoisingClock(flux)
    for _ in range(2):
        assert _follow(flux, clock, num_inference_steps=1, latents=latents) == [(0, slice(0, 2))]


def test_a_transformer_that_gets_both_halves_at_once_is_read_like_a_unet():
    pipeline = SimpleNamespace(transformer=Denoiser(), do_classifier_free_guidance=True)
    clock = DenoisingClock(pipeline)
    latents = torch.randn(3, 4)
    with clock.following():
        pipeline.transformer(torch.cat([latents] * 2), timestep=torch.tensor(1.0))
    assert clock.rows(6) == slice(3, 6)


def test_a_transformer_that_is_called_twice_is_told_apart_where_the_pipeline_says_it_guides():
    pipeline = SimpleNamespace(transformer=Denoiser(), do_classifier_free_guidance=True)
    clock = DenoisingClock(pipeline)
    latents, timestep = torch.randn(2, 4), torch.tensor([1.0, 1.0])
    with clock.following():
        pipeline.transformer(latents, timestep=timestep)
        assert clock.rows(2) == slice(0, 2)
        pipeline.transformer(latents, timestep=timestep)
        assert clock.rows(2) == slice(0, 0)
        pipeline.transformer(latents, timestep=timestep.clone())
        assert clock.rows(2) == slice(0, 2)


@pytest.mark.parametrize("copies", [1, 3])
def test_guidance_of_a_unet_with_anything_but_two_halves_is_refused(copies: int):
    pipeline = SimpleNamespace(unet=Denoiser(), do_classifier_free_guidance=True)
    with DenoisingClock(pipeline).following(), pytest.raises(ClockError, match="not the same latents twice"):
        pipeline.unet(torch.cat([torch.randn(2, 4)] * copies), timestep=3)


def test_an_output_without_a_row_a_prompt_is_refused(flux: Any):
    clock = DenoisingClock(flux)
    _follow(flux, clock, num_inference_steps=1)
    with pytest.raises(ClockError, match="has 528 rows where transformer was given 2"):
        clock.rows(528)


def test_another_number_of_steps_takes_the_nearest_of_the_known_timesteps(sdxl: Any):
    clock = DenoisingClock(sdxl, timesteps=(900, 300, 100))
    steps = [step for step, _ in _follow(sdxl, clock, num_inference_steps=5, guidance_scale=0)]
    known = (900, 300, 100)
    distances = [[abs(t - now) for t in known] for now in sdxl.scheduler.timesteps.tolist()]
    assert steps == [row.index(min(row)) for row in distances]
    assert len(set(steps)) == 3
    assert clock.timesteps == known


def test_the_clock_leaves_the_denoiser_with_its_context(sdxl: Any):
    with DenoisingClock(sdxl).following():
        assert sdxl.unet._forward_pre_hooks
    assert not sdxl.unet._forward_pre_hooks
