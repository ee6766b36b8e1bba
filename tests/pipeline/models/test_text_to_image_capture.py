from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from act.capture import Capture
from act.hookpoint import Hookpoint
from pipeline.models import Packed, PackingRule, Survey
from pipeline.models.text_to_image import TextToImageModel
from tests.pipeline.models.drawing import CASES, MID, PROMPTS, RULE, STREAMS, checkpoint_of


def _capture(model: TextToImageModel, survey: Survey, packed: Packed, num_prompts: int) -> dict[str, torch.Tensor]:
    """Mean-pooled activations `[prompts, neurons]` of each site, NaN where a prompt was not run."""
    kept = {site.hookpoint: torch.full((num_prompts, site.width), torch.nan) for site in survey.sites}
    rows: Sequence[int] = ()

    def keep(number: int, sample: torch.Tensor) -> None:
        kept[survey.sites[number].hookpoint][list(rows)] = sample.float()

    capture = Capture(model.modules, survey.sites, "mean", keep, model.clock(survey.timesteps))
    with capture.reading():
        for batch in packed.batches:
            rows = batch.rows
            with capture.batch(batch.spans):
                model.forward(batch)
    return kept


def _watch(model: TextToImageModel, name: str, output: int, packed: Packed) -> list[torch.Tensor]:
    """What a module returns in each call, by a hook of the test's own."""
    calls: list[torch.Tensor] = []

    def look(module: torch.nn.Module, args: Any, returned: Any) -> None:
        calls.append((returned[output] if isinstance(returned, tuple) else returned).clone())

    with model.modules[name].register_forward_hook(look):
        for batch in packed.batches:
            model.forward(batch)
    return calls


def _means(calls: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [call.mean(dim=(2, 3) if call.ndim == 4 else 1) for call in calls]


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_captured_means_are_those_of_an_independent_hook(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = checkpoint_of(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, RULE, "cpu"), checkpoint.load("cpu")
    packed = model.pack(PROMPTS, 0, PackingRule("plain", 128, 1024))
    kept = _capture(model, survey, packed, len(PROMPTS))
    assert len(packed.batches) == 1
    for site in survey.sites:
        place = Hookpoint.parse(site.hookpoint)
        means = _means(_watch(model, place.module, place.output or 0, packed))
        if name == "sdxl":
            wanted = means[place.step or 0][-len(PROMPTS) :]
        else:
            wanted = means[:: 2 if guidance else 1][place.step or 0]
        assert kept[site.hookpoint].shape == (len(PROMPTS), site.width)
        torch.testing.assert_close(kept[site.hookpoint], wanted, rtol=1e-5, atol=1e-6)


def test_a_guided_unet_is_read_on_its_conditional_rows_alone(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["sdxl"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(MID, RULE, "cpu"), checkpoint.load("cpu")
    packed = model.pack(["a cat"], 0, RULE)
    kept = _capture(model, survey, packed, 1)["unet.mid_block@0"]
    unconditional, conditional = _means(_watch(model, "unet.mid_block", 0, packed))[0]
    torch.testing.assert_close(kept[0], conditional, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept[0], unconditional, atol=1e-5)
    assert not torch.allclose(kept[0], (unconditional + conditional) / 2, atol=1e-5)


def test_a_guided_transformer_is_called_twice_and_read_once(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["flux"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(STREAMS[0], RULE, "cpu"), checkpoint.load("cpu")
    packed = model.pack(["a cat"], 0, RULE)
    kept = _capture(model, survey, packed, 1)["transformer.transformer_blocks.1:1@0"]
    conditional, unconditional = _means(_watch(model, "transformer.transformer_blocks.1", 1, packed))
    torch.testing.assert_close(kept, conditional, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(conditional, unconditional, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_a_prompt_does_not_depend_on_its_neighbours_and_a_unit_repeats_its_bits(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = checkpoint_of(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, RULE, "cpu"), checkpoint.load("cpu")
    together = model.pack(PROMPTS, 100, PackingRule("plain", 128, 1024))
    kept = _capture(model, survey, together, len(PROMPTS))
    again = _capture(model, survey, together, len(PROMPTS))
    others = _capture(model, survey, model.pack((None, PROMPTS[1], "x"), 100, PackingRule("plain", 128, 1)), 3)
    alone = _capture(model, survey, model.pack(PROMPTS[1:2], 101, RULE), 1)
    moved = _capture(model, survey, model.pack(PROMPTS[1:2], 100, RULE), 1)
    for site in kept:
        assert torch.equal(kept[site], again[site])
        torch.testing.assert_close(others[site][1], kept[site][1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone[site][0], kept[site][1], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(moved[site][0], kept[site][1], rtol=1e-4, atol=1e-5) for site in kept)
