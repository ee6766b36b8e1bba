import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import act
from act.errors import (
    EmptyMarginalError,
    EmptyRowError,
    HookpointNotFoundError,
    NotFiniteError,
    ShapeError,
    SiteVisitError,
)
from act.fingerprint import fingerprint
from act.marginal import Marginal
from act.transport import METHODS, Selection, Transport, default_support, fit, scores
from act.transport import select as choose
from tests.architectures import tiny

Reduce = Callable[[np.ndarray], np.ndarray]
POOL: dict[str, Reduce] = {
    "mean": lambda real: real.mean(0),
    "max": lambda real: real.max(0),
    "last": lambda real: real[-1],
    "all": lambda real: real,
}


def prompts(count: int, seed: int) -> list[torch.Tensor]:
    """Token ids of prompts of 1 to 9 tokens; those of the two sides come from different halves of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (count,), generator=generator).tolist()
    return [torch.randint(3 + 20 * seed, 40 + 20 * seed, (length,), generator=generator) for length in lengths]


def batches(ids: list[torch.Tensor], side: str, size: int) -> list[dict[str, torch.Tensor]]:
    """Padded batches that say which positions the real tokens have, so that both paddings are the same prompts."""
    made = []
    for start in range(0, len(ids), size):
        rows = ids[start : start + size]
        width = max(map(len, rows))
        batch = torch.full((len(rows), width), 63)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            real = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            batch[place, real], mask[place, real] = row, 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        made.append({"input_ids": batch, "attention_mask": mask, "position_ids": positions})
    return made


SOURCE, TARGET = prompts(23, 0), prompts(17, 1)
LINEAR = Transport("linear", "observed")


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


def fitted(
    model: Any, side: str = "right", transport: Transport = LINEAR, pooling: Any = "mean", size: int = 5
) -> act.Steer:
    source, target = (batches(ids, side, size) for ids in (SOURCE, TARGET))
    return act.fit_steer(model, source, target, pooling=pooling, transport=transport)


def activations(model: Any, ids: list[torch.Tensor], pooling: str) -> dict[str, np.ndarray]:
    """Samples `[samples, neurons]` of each norm, prompt by prompt without any padding, pooled by NumPy in float64."""
    samples: dict[str, list[np.ndarray]] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: samples.setdefault(name, []).append(
            np.atleast_2d(POOL[pooling](output[0].double().numpy()))
        )

    norms = [(name, module) for name, module in model.named_modules() if type(module).__name__ == "LlamaRMSNorm"]
    handles = [module.register_forward_hook(keep(name)) for name, module in norms]
    with torch.no_grad():
        for row in ids:
            model(input_ids=row[None])
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in samples.items()}


def quantiles(sorted_column: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The step quantile function of an empirical law."""
    count = len(sorted_column)
    return sorted_column[np.minimum((probs * count).astype(int), count - 1)]


def affine(method: str, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean-AcT or Linear-AcT of one neuron: the integral on a grid that holds every step of both laws."""
    if method == "mean":
        return 1.0, b.mean() - a.mean()
    grid = len(a) * len(b)
    probs = (np.arange(grid) + 0.5) / grid
    left = quantiles(np.sort(a), probs) - a.mean()
    right = quantiles(np.sort(b), probs) - b.mean()
    scale = (left * right).sum() / (left * left).sum()
    return scale, b.mean() - scale * a.mean()


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_maps_agree_with_an_independent_implementation(llama: Any, method: str, pooling: str, side: str) -> None:
    steer = fitted(llama, side, Transport(method, "observed"), pooling)
    source, target = (activations(llama, ids, pooling) for ids in (SOURCE, TARGET))
    assert set(steer.maps) == set(source)
    for name, transport in steer.maps.items():
        pairs = [affine(method, a, b) for a, b in zip(source[name].T, target[name].T, strict=True)]
        scale, shift = np.array(pairs).T
        size = np.abs(target[name]).max()
        np.testing.assert_allclose(transport.scale.numpy(), scale, rtol=1e-4)
        np.testing.assert_allclose(transport.shift.numpy(), shift, rtol=1e-4, atol=1e-5 * size)
        np.testing.assert_allclose(transport.low.numpy(), source[name].min(0), rtol=1e-4, atol=1e-5 * size)
        np.testing.assert_allclose(transport.high.numpy(), source[name].max(0), rtol=1e-4, atol=1e-5 * size)


def test_all_tokens_are_samples_under_all(llama: Any) -> None:
    steer = fitted(llama, "left", Transport("linear", "observed"), "all")
    source, target = (activations(llama, ids, "all") for ids in (SOURCE, TARGET))
    assert steer.card.source.num_samples == sum(map(len, SOURCE)) == len(source["model.norm"])
    scale, shift = affine("linear", source["model.norm"][:, 3], target["model.norm"][:, 3])
    assert float(steer.maps["model.norm"].scale[3]) == pytest.approx(scale, rel=1e-4)
    assert float(steer.maps["model.norm"].shift[3]) == pytest.approx(shift, rel=1e-4, abs=1e-6)


def test_padding_and_batches_do_not_matter(llama: Any) -> None:
    steers = [fitted(llama, "right", size=5), fitted(llama, "left", size=5), fitted(llama, "right", size=1)]
    for other in steers[1:]:
        for name, transport in steers[0].maps.items():
            for part in ("scale", "shift", "low", "high"):
                wanted, found = getattr(transport, part), getattr(other.maps[name], part)
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_call_gives_the_same_bits(llama: Any, tmp_path: Path) -> None:
    assert fitted(llama).save(tmp_path / "a").card == fitted(llama).save(tmp_path / "b").card


def test_percentiles_are_the_ends_of_the_support(llama: Any) -> None:
    steer = fitted(llama, transport=Transport("linear", (10.0, 90.0)))
    source = activations(llama, SOURCE, "mean")
    assert steer.card.support == "[10, 90]"
    for name, transport in steer.maps.items():
        low, high = np.percentile(source[name], [10, 90], axis=0)
        np.testing.assert_allclose(transport.low.numpy(), low, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(transport.high.numpy(), high, rtol=1e-4, atol=1e-5)
    inside = [site.transported for site in steer.card.sites]
    # Of 23 samples the percentiles lie between the 3rd and the 4th from either end.
    assert inside == pytest.approx([17 / 23] * 5)


def test_an_unbounded_support_moves_everything(llama: Any) -> None:
    steer = fitted(llama, transport=Transport("mean", "unbounded"))
    assert all(transport.low.isneginf().all() and transport.high.isposinf().all() for transport in steer.maps.values())
    assert [site.transported for site in steer.card.sites] == [1.0] * 5


def test_the_fitted_steer_moves_the_source_law_onto_the_target(llama: Any) -> None:
    steer = fitted(llama, transport=Transport("linear", "unbounded"))
    source, target = (activations(llama, ids, "mean") for ids in (SOURCE, TARGET))
    for name, transport in steer.maps.items():
        moved = transport(torch.from_numpy(source[name]).float()).numpy()
        np.testing.assert_allclose(moved.mean(0), target[name].mean(0), rtol=1e-4, atol=1e-5)
        assert np.abs(source[name].mean(0) - target[name].mean(0)).max() > 0.05


def test_the_card_says_what_was_done(llama: Any) -> None:
    card = fitted(llama, transport=Transport("mean", "observed")).card
    assert (card.method, card.support, card.pooling, card.kind) == ("mean", "observed", "mean", "module")
    assert (card.source.num_samples, card.target.num_samples) == (23, 17)
    assert card.model_fingerprint == fingerprint(llama)
    assert [site.hookpoint for site in card.sites] == [
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
        "model.layers.1.input_layernorm",
        "model.layers.1.post_attention_layernorm",
        "model.norm",
    ]
    assert {(site.module_type, site.width) for site in card.sites} == {("LlamaRMSNorm", 32)}
    assert all(site.displacement > 0 for site in card.sites)
    assert card.numerics["threads"] == torch.get_num_threads()


def test_displacement_is_in_standard_deviations(llama: Any) -> None:
    steer = fitted(llama, transport=Transport("mean", "unbounded"))
    source, target = (activations(llama, ids, "mean") for ids in (SOURCE, TARGET))
    for site in steer.card.sites:
        a, b = source[site.hookpoint], target[site.hookpoint]
        wanted = (np.abs(b.mean(0) - a.mean(0)) / a.std(0)).mean()
        assert site.displacement == pytest.approx(wanted, rel=1e-3)


def test_the_card_says_how_much_of_single_tokens_and_neurons_is_moved_and_how_well(llama: Any) -> None:
    steer = fitted(llama)
    source, single = (activations(llama, SOURCE, pooling) for pooling in ("mean", "all"))
    assert (steer.card.law, steer.card.select, steer.card.threshold) == ("exact", "", 0.5)
    for site in steer.card.sites:
        transport, a, tokens = steer.maps[site.hookpoint], source[site.hookpoint], single[site.hookpoint]
        low, high = transport.low.double().numpy(), transport.high.double().numpy()
        assert site.tokens_transported == pytest.approx(((tokens >= low) & (tokens <= high)).mean(), abs=0.01)
        assert site.tokens_transported < 0.9 < site.transported
        assert site.neurons_transported == 1.0
        errors = transport.error.double().numpy() / a.std(0)
        assert site.error_worst == pytest.approx(errors.max(), rel=1e-3)
        assert np.sort(errors)[15] * 0.999 <= site.error_median <= np.sort(errors)[16] * 1.001
        assert 0 < site.error_median <= site.error_worst < 1e-4
        assert site.misfit == 0


def test_the_support_of_tokens_is_their_range_and_transports_them_all(llama: Any) -> None:
    steer = fitted(llama, transport=Transport("linear", "tokens"))
    single = activations(llama, SOURCE, "all")
    assert steer.card.support == "tokens"
    for name, transport in steer.maps.items():
        np.testing.assert_allclose(transport.low.numpy(), single[name].min(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(transport.high.numpy(), single[name].max(0), rtol=1e-4, atol=1e-5)
    assert [site.tokens_transported for site in steer.card.sites] == [1.0] * 5


@pytest.mark.parametrize("method", METHODS)
def test_each_method_fits_saves_and_steers(llama: Any, method: str, tmp_path: Path) -> None:
    target = TARGET if method != "actadd" else (TARGET * 2)[: len(SOURCE)]
    sides = batches(SOURCE, "right", 5), batches(target, "right", 5)
    steer = act.fit_steer(llama, *sides, transport=Transport(method))
    assert steer.card.support == default_support(method)
    steer.save(tmp_path / "steer")
    again = act.load(tmp_path / "steer")
    ids = SOURCE[0][None]
    with torch.no_grad():
        plain = llama(input_ids=ids).logits
        with act.apply(again, llama):
            steered = llama(input_ids=ids).logits
    assert steered.isfinite().all()
    assert not torch.equal(steered, plain)


def test_the_maps_of_a_method_are_those_of_the_laws(llama: Any) -> None:
    source, target = (activations(llama, ids, "mean")["model.norm"] for ids in (SOURCE, TARGET))
    samples = torch.from_numpy(source).float(), torch.from_numpy(target).float()
    laws = [Marginal.from_samples(side) for side in samples]
    for method in ("gaussian", "aura", "east", "iti-probe", "det-zero"):
        wanted = fit(method, *laws, samples=samples, threshold=0.7).tensors()
        found = fitted(llama, transport=Transport(method, threshold=0.7)).maps["model.norm"].tensors()
        torch.testing.assert_close(found["scale"], wanted["scale"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["shift"], wanted["shift"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (Selection("w2", 5), "top 5 neurons of each site by w2"),
        (Selection("auroc", 0.1, across="model"), "top 10% of neurons of the model by auroc"),
        (Selection("w2", 2, of="sites"), "top 2 sites by w2"),
    ],
)
def test_a_selection_moves_the_neurons_whose_laws_differ_most(llama: Any, select: Selection, words: str) -> None:
    whole, steer = fitted(llama), fitted(llama, transport=Transport("linear", select=select))
    source, target = (activations(llama, ids, "mean") for ids in (SOURCE, TARGET))
    sites = [site.hookpoint for site in steer.card.sites]
    laws = [[Marginal.from_samples(torch.from_numpy(side[name])) for side in (source, target)] for name in sites]
    chosen = choose(select, [scores(select.by, *pair) for pair in laws])
    assert steer.card.select == words
    assert 0 < sum(int(mask.sum()) for mask in chosen) < 5 * 32
    for site, mask in zip(steer.card.sites, chosen, strict=True):
        found, wanted = steer.maps[site.hookpoint], whole.maps[site.hookpoint]
        assert torch.equal(found.moves, mask)
        assert torch.equal(found.tensors()["scale"][mask], wanted.tensors()["scale"][mask])
        assert site.neurons_transported == pytest.approx(float(mask.double().mean()))


def test_a_fitted_steer_survives_a_folder(llama: Any, tmp_path: Path) -> None:
    steer = fitted(llama).save(tmp_path / "steer")
    again = act.load(tmp_path / "steer")
    assert again.card == steer.card
    ids = SOURCE[0][None]
    with torch.no_grad(), act.apply(steer, llama):
        wanted = llama(input_ids=ids).logits
    with torch.no_grad(), act.apply(again, llama):
        assert torch.equal(llama(input_ids=ids).logits, wanted)


def test_fitting_leaves_the_model_as_it_was(llama: Any) -> None:
    model = copy.deepcopy(llama).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_may_come_from_generators_and_sides_differ_in_number(llama: Any) -> None:
    whole = fitted(llama)
    lazy = act.fit_steer(llama, iter(batches(SOURCE, "right", 5)), (batch for batch in batches(TARGET, "right", 5)))
    assert all(torch.equal(lazy.maps[name].scale, transport.scale) for name, transport in whole.maps.items())


def test_any_module_is_fitted() -> None:
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model, generator = Toy(), torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 3, generator=generator), torch.randn(6, 3, generator=generator)
    steer = act.fit_steer(model, [{"x": a}], [{"x": b[:4]}, {"x": b[4:]}], hookpoints="layer")
    with torch.no_grad():
        columns = (model(a).double().numpy().T, model(b).double().numpy().T)
    pairs = [affine("linear", left, right) for left, right in zip(*columns, strict=True)]
    np.testing.assert_allclose(steer.maps["layer"].scale.numpy(), [scale for scale, _ in pairs], rtol=1e-4)
    np.testing.assert_allclose(steer.maps["layer"].shift.numpy(), [shift for _, shift in pairs], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_fitted_is_refused(llama: Any) -> None:
    side = batches(SOURCE, "right", 5)
    empty = {"input_ids": side[0]["input_ids"], "attention_mask": torch.zeros_like(side[0]["attention_mask"])}
    broken = copy.deepcopy(llama)
    broken.model.norm.weight[3] = torch.nan
    cases: list[tuple[type[Exception], Any, list[Any], str]] = [
        (EmptyMarginalError, llama, [], "layernorms"),
        (HookpointNotFoundError, llama, side, "nothing"),
        (HookpointNotFoundError, tiny("opt"), side, "mlp-out"),
        (EmptyRowError, llama, [empty], "layernorms"),
        (NotFiniteError, broken, side, "layernorms"),
        (SiteVisitError, tiny("albert"), side, "attention-out"),
    ]
    for error, model, batch, hookpoints in cases:
        with pytest.raises(error):
            act.fit_steer(model, batch, side, hookpoints=hookpoints)
        with pytest.raises(error):
            act.fit_steer(model, side if error is EmptyMarginalError else batch, batch, hookpoints=hookpoints)
        assert not any(module._forward_hooks for module in model.modules())


def test_a_norm_that_flattens_the_tokens_is_named() -> None:
    side = [
        {name: value for name, value in batch.items() if name != "position_ids"}
        for batch in batches(SOURCE, "right", 5)
    ]
    with pytest.raises(ShapeError, match=r"the output of model.decoder.layers.0.final_layer_norm"):
        act.fit_steer(tiny("opt"), side, side)
