from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import act
from act.fingerprint import fingerprint
from act.hookpoint import Hookpoint
from act.steer import Steer
from act.transport import AbstractMap, TransportMap
from pipeline.models import Sampling, Survey
from pipeline.models.text_to_image import TextToImageModel
from schemas.card import Card, SideCard, SiteCard
from tests.pipeline.models.drawing import CASES, MID, RULE, STREAMS, checkpoint_of, image_of, model_of


def _steer(model: TextToImageModel, survey: Survey, maps: Mapping[str, AbstractMap]) -> Steer:
    here = (site for site in survey.sites if site.hookpoint in maps)
    sites = tuple(SiteCard(s.hookpoint, s.module_type, s.width, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0) for s in here)
    side = SideCard(1, 0, 1, 0, 0, "")
    return Steer(
        Card(
            format_version=3,
            name="tiny",
            kind="text-to-image",
            method="linear",
            support="unbounded",
            threshold=0.5,
            select="",
            law="exact",
            pooling="mean",
            template="plain",
            estimation="simultaneous",
            sites=sites,
            timesteps=survey.timesteps,
            source=side,
            target=side,
            model_fingerprint=fingerprint(model.root),
            checkpoint_fingerprint="",
            numerics={},
            plan="",
            spec={},
            tensors="",
        ),
        {site.hookpoint: maps[site.hookpoint] for site in sites},
    )


def _map(width: int, scale: float, shift: float) -> TransportMap:
    unbounded = torch.full((width,), torch.inf)
    return TransportMap(torch.full((width,), scale), torch.full((width,), shift), -unbounded, unbounded)


def _moved(model: TextToImageModel, survey: Survey, steps: Sequence[int] | None = None) -> Steer:
    """A steer that moves every site of some steps and is the identity at the others."""
    chosen = range(len(survey.timesteps)) if steps is None else steps
    maps = {
        site.hookpoint: _map(site.width, 0.5, 1.0)
        if Hookpoint.parse(site.hookpoint).step in chosen
        else _map(site.width, 1, 0)
        for site in survey.sites
    }
    return _steer(model, survey, maps)


def _fail_within(context: AbstractContextManager[None]) -> None:
    with context:
        raise KeyError("stop")


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_steering_changes_the_image_and_leaving_restores_it(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = checkpoint_of(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, RULE, "cpu"), checkpoint.load("cpu")
    steer, plain = _moved(model, survey), image_of(model)
    with act.apply(steer, model.root, strength=1.0):
        whole = image_of(model)
        assert image_of(model) == whole
    with act.apply(steer, model.root, strength=0.5):
        half = image_of(model)
    with act.apply(steer, model.root, strength=0):
        assert image_of(model) == plain
    assert len({plain, half, whole}) == 3
    with act.apply(steer, model.root):
        assert image_of(model) == whole
    with pytest.raises(KeyError, match="stop"):
        _fail_within(act.apply(steer, model.root))
    assert image_of(model) == plain
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules.values())


def _predictions(model: TextToImageModel) -> list[torch.Tensor]:
    """What the denoiser returns in each call, while an image is drawn."""
    calls: list[torch.Tensor] = []
    denoiser = getattr(model.root, "unet", None) or model.root.transformer
    with denoiser.register_forward_hook(lambda module, args, output: calls.append(output[0].clone())):
        model.generate("a cat", Sampling())
    return calls


@pytest.mark.parametrize(("name", "hookpoints"), [("sdxl", (MID,)), ("flux", STREAMS)])
@pytest.mark.parametrize("step", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_maps_of_a_step_are_applied_at_that_step(
    folders: Mapping[str, Path], name: str, hookpoints: tuple[str, ...], step: int
):
    checkpoint = checkpoint_of(folders[name])
    survey, model = checkpoint.survey(hookpoints, RULE, "cpu"), checkpoint.load("cpu")
    plain = _predictions(model)
    with act.apply(_moved(model, survey, [step]), model.root):
        steered = _predictions(model)
    assert len(plain) == len(steered) == 3
    assert [torch.equal(a, b) for a, b in zip(plain, steered, strict=True)] == [n < step for n in range(3)]


def test_maps_stay_at_their_own_step_when_others_have_none(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["sdxl"])
    survey, model = checkpoint.survey(MID, RULE, "cpu"), checkpoint.load("cpu")
    with_identities = _moved(model, survey, [2])
    alone = _steer(model, survey, {"unet.mid_block@2": with_identities.maps["unet.mid_block@2"]})
    with act.apply(with_identities, model.root):
        wanted = image_of(model)
    with act.apply(alone, model.root):
        assert image_of(model) == wanted
    assert image_of(model) != wanted


@pytest.mark.slow
def test_another_number_of_steps_takes_the_maps_of_the_nearest_timesteps(folders: Mapping[str, Path]):
    fitted = checkpoint_of(folders["sdxl"], steps=2)
    survey = fitted.survey(MID, RULE, "cpu")
    model = model_of(folders["sdxl"], steps=6)
    times = list(checkpoint_of(folders["sdxl"], steps=6).survey(MID, RULE, "cpu").timesteps)
    nearest = [min((0, 1), key=lambda step: abs(survey.timesteps[step] - now)) for now in times]
    assert set(nearest) == {0, 1}
    plain = _sites(model, None)
    steered = _sites(model, _moved(model, survey, [1]))
    first = nearest.index(1)
    assert [torch.equal(a, b) for a, b in zip(plain, steered, strict=True)] == [n < first for n in range(6)]
    # At the first moved step the site's input is still the plain one: its output is exactly the map of it.
    torch.testing.assert_close(steered[first], plain[first] * 0.5 + 1.0)


def _sites(model: TextToImageModel, steer: Steer | None) -> list[torch.Tensor]:
    """What the middle block hands on in each call: its output after all hooks."""
    calls: list[torch.Tensor] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        calls.append(kwargs["hidden_states"].clone())

    with (
        act.apply(steer, model.root) if steer else nullcontext(),
        model.root.unet.up_blocks[0].register_forward_pre_hook(look, with_kwargs=True),
    ):
        model.generate("a cat", Sampling())
    return calls


def test_the_unconditional_half_of_a_guided_unet_is_untouched(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["sdxl"], guidance=4.0, steps=2)
    survey, model = checkpoint.survey(MID, RULE, "cpu"), checkpoint.load("cpu")
    plain, steered = _sites(model, None), _sites(model, _moved(model, survey))
    assert torch.equal(plain[0][0], steered[0][0])
    torch.testing.assert_close(steered[0][1], plain[0][1] * 0.5 + 1.0)


def test_the_unconditional_call_of_a_guided_transformer_is_untouched(folders: Mapping[str, Path]):
    checkpoint = checkpoint_of(folders["flux"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(STREAMS, RULE, "cpu"), checkpoint.load("cpu")
    plain = _predictions(model)
    with act.apply(_moved(model, survey), model.root):
        conditional, unconditional = _predictions(model)
    assert not torch.equal(conditional, plain[0])
    assert torch.equal(unconditional, plain[1])
