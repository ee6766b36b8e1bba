import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import act
from act.capture import Capture
from act.clock import DenoisingClock
from act.errors import ClockError, HookpointNotFoundError, SiteVisitError
from act.fingerprint import fingerprint
from act.hookpoint import Hookpoint
from act.steer import Steer
from act.transport.affine import TransportMap
from pipeline.errors import ModelLoadError, ModelNotFoundError
from pipeline.models import Packed, PackingRule, Sampling, Survey
from pipeline.models.live_bytes import LiveBytes
from pipeline.models.text_to_image import TextToImageCheckpoint, TextToImageModel
from schemas.card import FORMAT_VERSION, Card, SideCard, SiteCard
from schemas.job import TextToImage
from tests.pipelines import CLIP_LIMIT, tiny_flux, tiny_sdxl

RULE = PackingRule(template="plain", max_tokens=128, batch_tokens=128)
PROMPTS = ("a cat", "two dogs on a hill", "the sea")

RESNETS = r"unet\.down_blocks\..*\.resnets\.\d+"
MID = r"unet\.mid_block"
NORMS = r"unet\..*\.norm2"
STREAMS = (r"transformer\.transformer_blocks\.\d:1", r"transformer\.transformer_blocks\.0", r"transformer\.proj_out")

#: Of each kind a 4-D or token-shaped site, with and without guidance.
CASES = [
    pytest.param("sdxl", 0.0, (RESNETS, MID), id="unet, pixels"),
    pytest.param("sdxl", 4.0, (RESNETS, MID), id="unet, pixels, guided"),
    pytest.param("sdxl", 4.0, (NORMS,), id="unet, tokens, guided"),
    pytest.param("flux", 0.0, STREAMS, id="transformer"),
    pytest.param("flux", 4.0, STREAMS, id="transformer, guided"),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sdxl": tiny_sdxl(root / "sdxl"),
        "flux": tiny_flux(root / "flux"),
        "flux-dev": tiny_flux(root / "flux-dev", guidance_embeds=True),
    }


def _checkpoint(folder: Path, **settings: Any) -> TextToImageCheckpoint:
    chosen = {"steps": 3, "height": 16, "width": 16} | settings
    return TextToImageCheckpoint(TextToImage(kind="text-to-image", path=str(folder), **chosen))


def _model(folder: Path, **settings: Any) -> TextToImageModel:
    return _checkpoint(folder, **settings).load("cpu")


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


def _steer(model: TextToImageModel, survey: Survey, maps: Mapping[str, TransportMap]) -> Steer:
    sites = tuple(SiteCard(s.hookpoint, s.module_type, s.width, 0.0, 1.0) for s in survey.sites if s.hookpoint in maps)
    side = SideCard(1, 1, 0, 0, "")
    return Steer(
        Card(
            format_version=FORMAT_VERSION,
            name="tiny",
            kind="text-to-image",
            method="linear",
            support="unbounded",
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


def _image(model: TextToImageModel, seed: int = 7) -> bytes:
    return model.generate("a cat", Sampling(seed=seed)).tobytes()


# Checkpoints


@pytest.mark.parametrize("name", ["sdxl", "flux"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_counts_from_headers_are_those_of_the_loaded_pipeline(
    folders: Mapping[str, Path], name: str, dtype: str, size: int
):
    checkpoint = _checkpoint(folders[name], dtype=dtype)
    parts = [part for part in checkpoint.load("cpu").root.components.values() if isinstance(part, torch.nn.Module)]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    assert checkpoint.facts.num_parameters == sum(parameter.numel() for parameter in parameters)
    assert checkpoint.facts.weight_bytes == sum(parameter.nbytes for parameter in parameters)
    assert checkpoint.facts.weight_bytes == checkpoint.facts.num_parameters * size
    assert checkpoint.location == folders[name]


def test_the_fingerprint_is_of_what_is_loaded(folders: Mapping[str, Path], tmp_path: Path):
    original = _checkpoint(folders["sdxl"]).facts.fingerprint
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    (copy / "README.md").write_text("other")
    shutil.copy(
        copy / "unet/diffusion_pytorch_model.safetensors", copy / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    assert _checkpoint(copy).facts.fingerprint == original
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert _checkpoint(copy).facts.fingerprint != original


def test_other_settings_of_a_component_are_another_fingerprint(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.02}))
    assert _checkpoint(copy).facts.fingerprint != _checkpoint(folders["sdxl"]).facts.fingerprint


def test_weights_in_shards_are_counted_and_loaded(folders: Mapping[str, Path], tmp_path: Path):
    _model(folders["sdxl"]).root.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    checkpoint = _checkpoint(tmp_path / "shards")
    assert checkpoint.facts.num_parameters == _checkpoint(folders["sdxl"]).facts.num_parameters
    assert _image(checkpoint.load("cpu")) == _image(_model(folders["sdxl"]))


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _foreign_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["mine", "Mine"]}))


def _no_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def _no_weights(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()


def _only_a_variant(folder: Path) -> None:
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")


def _only_pickle(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")


def _shards_elsewhere(folder: Path) -> None:
    _no_weights(folder)
    index = {"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _code(folder: Path) -> None:
    (folder / "unet/mine.py").write_text("raise SystemExit")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (shutil.rmtree, ModelNotFoundError, "no such folder"),
        (_no_index, ModelNotFoundError, "no model_index.json"),
        (_broken_index, ModelLoadError, "no JSON"),
        (_foreign_class, ModelLoadError, "names no pipeline class"),
        (_no_component, ModelNotFoundError, "'vae'"),
        (_no_weights, ModelNotFoundError, "no weights"),
        (_only_a_variant, ModelNotFoundError, "only variants"),
        (_only_pickle, ModelNotFoundError, "only pickled weights"),
        (_shards_elsewhere, ModelLoadError, "no files beside it"),
        (_code, ModelLoadError, "Python code"),
    ],
)
def test_a_folder_that_is_no_safe_pipeline_is_refused_at_once(
    folders: Mapping[str, Path], tmp_path: Path, damage: Any, error: type[Exception], says: str
):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    damage(copy)
    with pytest.raises(error, match=says) as caught:
        _checkpoint(copy)
    assert "\n" not in str(caught.value)


def test_weights_cut_short_are_refused_by_the_plan_and_by_loading(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError):
        _ = _checkpoint(copy).facts
    with pytest.raises(ModelLoadError) as caught:
        _model(copy)
    assert "\n" not in str(caught.value)


def test_an_unknown_class_is_refused_in_one_sentence(folders: Mapping[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["sdxl"], tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoSuchPipeline"}))
    with pytest.raises(ModelLoadError, match="NoSuchPipeline"):
        _model(copy)


# Survey


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_every_hookpoint_is_a_site_at_every_step(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    survey = _checkpoint(folders[name], guidance=guidance).survey(hookpoints, "mean", RULE)
    places = [Hookpoint.parse(site.hookpoint) for site in survey.sites]
    first = [Hookpoint(place.module, place.output) for place in places if place.step == 0]
    assert places == [Hookpoint(place.module, place.output, step) for step in range(3) for place in first]
    assert len(survey.timesteps) == 3
    assert sorted(survey.timesteps, reverse=True) == list(survey.timesteps)


def test_sites_stand_in_execution_order_with_their_widths(folders: Mapping[str, Path]):
    checkpoint = _checkpoint(folders["sdxl"], steps=1)
    names = list(checkpoint.load("cpu").modules)
    assert names.index("unet.mid_block") > names.index("unet.up_blocks.0")
    survey = checkpoint.survey((MID, r"unet\.(up|down)_blocks\.\d"), "mean", RULE)
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
        ("sdxl", "blocks", "unet.down_blocks.1", 7),
        ("flux", "layernorms", "transformer.transformer_blocks.0.norm1", 11),
        ("flux", "attention-out", "transformer.transformer_blocks.0.attn", 4),
        ("flux", "mlp-out", "transformer.transformer_blocks.0.ff", 4),
        ("flux", "blocks", "transformer.transformer_blocks.0:1", 4),
    ],
)
def test_presets_choose_sites_of_one_role(folders: Mapping[str, Path], name: str, preset: str, one: str, count: int):
    survey = _checkpoint(folders[name], steps=1, guidance=4.0).survey(preset, "mean", RULE)
    chosen = {site.hookpoint.removesuffix("@0") for site in survey.sites}
    assert one in chosen
    assert len(chosen) == count


@pytest.mark.parametrize("pattern", [r"text_encoder\..*", r"vae\..*", "unet.no_such_thing"])
def test_only_the_denoiser_has_hookpoints(folders: Mapping[str, Path], pattern: str):
    with pytest.raises(HookpointNotFoundError):
        _checkpoint(folders["sdxl"]).survey(pattern, "mean", RULE)


def test_a_module_that_is_never_called_is_refused(folders: Mapping[str, Path]):
    with pytest.raises(SiteVisitError, match="never"):
        _checkpoint(folders["sdxl"]).survey(r"unet\.down_blocks", "mean", RULE)


def test_an_output_without_a_row_a_prompt_is_refused(folders: Mapping[str, Path]):
    with pytest.raises(ClockError, match="rows"):
        _checkpoint(folders["flux"]).survey(r"transformer\.pos_embed", "mean", RULE)


def test_a_pipeline_that_hides_its_guidance_is_refused(folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DenoisingClock, "_doubled", lambda clock, latents: False)
    with pytest.raises(ClockError, match="2 rows for one prompt"):
        _checkpoint(folders["sdxl"], guidance=4.0).survey(MID, "mean", RULE)


@pytest.mark.parametrize(("name", "guidance"), [("sdxl", 4.0), ("sdxl", 0.0), ("flux", 4.0)])
def test_the_bytes_of_a_forward_are_those_of_a_full_micro_batch(
    folders: Mapping[str, Path], name: str, guidance: float
):
    rule = PackingRule("plain", 128, 256)
    checkpoint = _checkpoint(folders[name], guidance=guidance)
    model, live = checkpoint.load("cpu"), LiveBytes()
    batch = model.pack(["a photograph"] * model.prompts_per_batch(rule), 0, rule).batches[0]
    assert len(batch.rows) > 1
    with live:
        model.forward(batch)
    stated = checkpoint.survey("mlp-out", "mean", rule).forward_bytes
    assert live.peak <= stated <= 1.2 * live.peak


# Capture


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_captured_means_are_those_of_an_independent_hook(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = _checkpoint(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, "mean", RULE), checkpoint.load("cpu")
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
    checkpoint = _checkpoint(folders["sdxl"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(MID, "mean", RULE), checkpoint.load("cpu")
    packed = model.pack(["a cat"], 0, RULE)
    kept = _capture(model, survey, packed, 1)["unet.mid_block@0"]
    unconditional, conditional = _means(_watch(model, "unet.mid_block", 0, packed))[0]
    torch.testing.assert_close(kept[0], conditional, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept[0], unconditional, atol=1e-5)
    assert not torch.allclose(kept[0], (unconditional + conditional) / 2, atol=1e-5)


def test_a_guided_transformer_is_called_twice_and_read_once(folders: Mapping[str, Path]):
    checkpoint = _checkpoint(folders["flux"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(STREAMS[0], "mean", RULE), checkpoint.load("cpu")
    packed = model.pack(["a cat"], 0, RULE)
    kept = _capture(model, survey, packed, 1)["transformer.transformer_blocks.1:1@0"]
    conditional, unconditional = _means(_watch(model, "transformer.transformer_blocks.1", 1, packed))
    torch.testing.assert_close(kept, conditional, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(conditional, unconditional, atol=1e-5)


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_a_prompt_does_not_depend_on_its_neighbours_and_a_unit_repeats_its_bits(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = _checkpoint(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, "mean", RULE), checkpoint.load("cpu")
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


# Packing


def test_prompts_are_packed_in_order_with_a_seed_each(folders: Mapping[str, Path]):
    model = _model(folders["sdxl"], seed=1000)
    packed = model.pack(["a", None, "b", "", "c", " \n", "d"], 10, RULE)
    assert [batch.rows for batch in packed.batches] == [(0, 2), (4, 6)]
    assert [batch.inputs["seeds"] for batch in packed.batches] == [(1010, 1012), (1014, 1016)]
    assert [batch.inputs["prompts"] for batch in packed.batches] == [("a", "b"), ("c", "d")]
    assert packed.num_tokens == (1, 0, 1, 0, 1, 0, 1)
    assert packed.num_truncated == 0


def test_a_unit_of_empty_prompts_runs_nothing(folders: Mapping[str, Path]):
    packed = _model(folders["sdxl"]).pack([None, ""], 0, RULE)
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
    assert _model(folders[name], **settings).prompts_per_batch(PackingRule("plain", 128, batch_tokens)) == prompts


def test_prompts_past_the_limit_of_clip_are_counted(folders: Mapping[str, Path]):
    model = _model(folders["sdxl"])
    fits = "a" * (CLIP_LIMIT - 2)
    assert model.pack([fits, fits + "a", "b"], 0, RULE).num_truncated == 1


def test_prompts_that_t5_reads_to_the_end_are_not_cut(folders: Mapping[str, Path]):
    model = _model(folders["flux"])
    assert model.pack(["a" * 500, "a" * 520], 0, RULE).num_truncated == 1


# Drawing and steering


def test_an_image_depends_on_its_seed_alone(folders: Mapping[str, Path]):
    model = _model(folders["sdxl"])
    image = model.generate("a cat", Sampling(seed=3))
    assert image.size == (16, 16)
    torch.rand(3)
    assert np.array_equal(np.asarray(image), np.asarray(model.generate("a cat", Sampling(seed=3))))
    assert _image(model, seed=3) == image.tobytes()
    assert _image(model, seed=4) != image.tobytes()


def test_a_distilled_transformer_gets_its_guidance_as_an_input(folders: Mapping[str, Path]):
    model = _model(folders["flux-dev"], guidance=3.5, steps=2)
    calls: list[float] = []

    def look(module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        calls.append(kwargs["guidance"].item())

    with model.root.transformer.register_forward_pre_hook(look, with_kwargs=True):
        model.generate("a cat", Sampling())
    assert calls == [3.5, 3.5]


def _fail_within(context: AbstractContextManager[None]) -> None:
    with context:
        raise KeyError("stop")


@pytest.mark.parametrize(("name", "guidance", "hookpoints"), CASES)
def test_steering_changes_the_image_and_leaving_restores_it(
    folders: Mapping[str, Path], name: str, guidance: float, hookpoints: tuple[str, ...]
):
    checkpoint = _checkpoint(folders[name], guidance=guidance)
    survey, model = checkpoint.survey(hookpoints, "mean", RULE), checkpoint.load("cpu")
    steer, plain = _moved(model, survey), _image(model)
    with act.apply(steer, model.root, strength=1.0):
        whole = _image(model)
        assert _image(model) == whole
    with act.apply(steer, model.root, strength=0.5):
        half = _image(model)
    with act.apply(steer, model.root, strength=0):
        assert _image(model) == plain
    assert len({plain, half, whole}) == 3
    with act.apply(steer, model.root):
        assert _image(model) == whole
    with pytest.raises(KeyError, match="stop"):
        _fail_within(act.apply(steer, model.root))
    assert _image(model) == plain
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules.values())


def _predictions(model: TextToImageModel) -> list[torch.Tensor]:
    """What the denoiser returns in each call, while an image is drawn."""
    calls: list[torch.Tensor] = []
    denoiser = getattr(model.root, "unet", None) or model.root.transformer
    with denoiser.register_forward_hook(lambda module, args, output: calls.append(output[0].clone())):
        model.generate("a cat", Sampling())
    return calls


@pytest.mark.parametrize(("name", "hookpoints"), [("sdxl", (MID,)), ("flux", STREAMS)])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_maps_of_a_step_are_applied_at_that_step(
    folders: Mapping[str, Path], name: str, hookpoints: tuple[str, ...], step: int
):
    checkpoint = _checkpoint(folders[name])
    survey, model = checkpoint.survey(hookpoints, "mean", RULE), checkpoint.load("cpu")
    plain = _predictions(model)
    with act.apply(_moved(model, survey, [step]), model.root):
        steered = _predictions(model)
    assert len(plain) == len(steered) == 3
    assert [torch.equal(a, b) for a, b in zip(plain, steered, strict=True)] == [n < step for n in range(3)]


def test_maps_stay_at_their_own_step_when_others_have_none(folders: Mapping[str, Path]):
    checkpoint = _checkpoint(folders["sdxl"])
    survey, model = checkpoint.survey(MID, "mean", RULE), checkpoint.load("cpu")
    with_identities = _moved(model, survey, [2])
    alone = _steer(model, survey, {"unet.mid_block@2": with_identities.maps["unet.mid_block@2"]})
    with act.apply(with_identities, model.root):
        wanted = _image(model)
    with act.apply(alone, model.root):
        assert _image(model) == wanted
    assert _image(model) != wanted


def test_another_number_of_steps_takes_the_maps_of_the_nearest_timesteps(folders: Mapping[str, Path]):
    fitted = _checkpoint(folders["sdxl"], steps=2)
    survey = fitted.survey(MID, "mean", RULE)
    model = _model(folders["sdxl"], steps=6)
    times = list(_checkpoint(folders["sdxl"], steps=6).survey(MID, "mean", RULE).timesteps)
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
    checkpoint = _checkpoint(folders["sdxl"], guidance=4.0, steps=2)
    survey, model = checkpoint.survey(MID, "mean", RULE), checkpoint.load("cpu")
    plain, steered = _sites(model, None), _sites(model, _moved(model, survey))
    assert torch.equal(plain[0][0], steered[0][0])
    torch.testing.assert_close(steered[0][1], plain[0][1] * 0.5 + 1.0)


def test_the_unconditional_call_of_a_guided_transformer_is_untouched(folders: Mapping[str, Path]):
    checkpoint = _checkpoint(folders["flux"], guidance=4.0, steps=1)
    survey, model = checkpoint.survey(STREAMS, "mean", RULE), checkpoint.load("cpu")
    plain = _predictions(model)
    with act.apply(_moved(model, survey), model.root):
        conditional, unconditional = _predictions(model)
    assert not torch.equal(conditional, plain[0])
    assert torch.equal(unconditional, plain[1])
