"""Forwards that wait for each other give the bits of forwards that run again for each site."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, get_args

import pytest
import torch

from act.pooling import POOLINGS, Pooling
from tests.act.lockstep.engine import in_lockstep, lockstep_of
from tests.act.lockstep.models import Case, Kind, flux, language_model, unet
from tests.act.lockstep.oracle import Batch, Maps, assert_same, fitted, one_after_another, one_map
from tests.architectures import CONFIGS, FURTHER, tiny

CASES: Mapping[str, Callable[[], Case]] = {
    **{family: partial(language_model, family) for family in sorted([*CONFIGS, *FURTHER])},
    "UNet2DConditionModel": unet,
    "FluxTransformer2DModel": flux,
}

#: At most how many sites, spread evenly, a fast test has: the oracle's time grows with their square.
SOME = 8

#: How many sites of a model have one vector a token and the same width in every batch: norms, linear layers, leaves.
NUM_SITES = {
    "albert": (3, 7, 15), "bert": (6, 14, 30), "bloom": (6, 9, 18), "falcon": (3, 9, 15), "gemma3_text": (9, 15, 27),
    "gpt2": (5, 9, 22), "gpt_neox": (5, 9, 22), "jamba": (8, 11, 21), "llama": (5, 15, 23), "mamba": (3, 7, 11),
    "mixtral": (5, 9, 15), "olmo2": (9, 15, 27), "opt": (3, 9, 14), "qwen3": (5, 15, 23), "bart": (12, 33, 52),
    "deepseek_v3": (9, 15, 27), "distilbert": (5, 12, 23), "gemma2": (9, 15, 27), "gemma4_text": (11, 20, 37),
    "gpt_oss": (5, 9, 15), "mistral": (5, 15, 23), "olmoe": (9, 9, 19), "phi": (3, 13, 22), "phi3": (5, 9, 21),
    "qwen2": (5, 15, 23), "qwen3_moe": (5, 9, 15), "qwen3_next": (5, 8, 14), "recurrent_gemma": (5, 14, 24),
    "roberta": (5, 12, 27), "rwkv": (6, 15, 26), "t5": (12, 33, 67), "zamba2": (9, 23, 35),
    "UNet2DConditionModel": (33, 50, 139), "FluxTransformer2DModel": (11, 48, 78),
}  # fmt: skip


def check(case: Case, sites: list[str], pooling: Pooling = "mean", method: str = "linear") -> None:
    """Fails unless both ways give the same maps, and maps that are not those of a model that nothing moves."""
    wanted = one_after_another(case.modules, sites, case.sides, pooling, method)
    assert_same(in_lockstep(case.modules, sites, case.sides, pooling, method), wanted)
    assert not any(module._forward_hooks for module in case.modules.values())
    assert any(
        (unmoved := one_map(case.modules, site, case.sides, pooling, method)) is not None
        and transport is not None
        and not torch.equal(unmoved.tensors()["shift"], transport.tensors()["shift"])
        for site, transport in zip(sites[::-1], wanted[::-1], strict=True)
    )


@pytest.mark.parametrize("kind", ["norms", pytest.param("projections", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_maps_are_those_of_running_again(name: str, kind: Kind) -> None:
    case = CASES[name]()
    sites = case.sites(kind)
    assert len(sites) == NUM_SITES[name][get_args(Kind).index(kind)]
    check(case, sites[:: math.ceil(len(sites) / SOME)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("name", CASES)
def test_maps_of_all_sites_are_those_of_running_again(name: str, kind: Kind) -> None:
    case = CASES[name]()
    sites = case.sites(kind)
    assert len(sites) == NUM_SITES[name][get_args(Kind).index(kind)]
    check(case, sites)


def test_most_families_have_the_fused_kernel() -> None:
    kernels = {family: tiny(family).config._attn_implementation for family in (*CONFIGS, *FURTHER)}
    without = {family for family, kernel in kernels.items() if kernel != "sdpa"}
    assert without == {"bloom", "gemma2", "gpt_oss", "mamba", "rwkv"}


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "gemma3_text"])
def test_maps_are_the_same_with_the_plain_kernel(family: str) -> None:
    case = language_model(family, "eager")
    check(case, case.sites("norms"))


@pytest.mark.parametrize("kind", ["norms", "projections"])
def test_maps_are_the_same_in_bfloat16(kind: Kind) -> None:
    case = language_model("llama", dtype=torch.bfloat16)
    check(case, case.sites(kind)[:SOME])


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_every_mode_gives_the_same_bits(family: str) -> None:
    modes: list[Callable[[], AbstractContextManager[Any]]] = [torch.inference_mode, torch.no_grad, nullcontext]
    cases = [language_model(family, mode=mode) for mode in modes]
    sites = cases[0].sites("norms")
    wanted = one_after_another(cases[0].modules, sites, cases[0].sides)
    for case in cases:
        assert_same(in_lockstep(case.modules, sites, case.sides), wanted)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_are_the_same_however_tokens_are_pooled(pooling: Pooling) -> None:
    case = language_model("qwen3")
    check(case, case.sites("norms"), pooling)


@pytest.mark.parametrize("method", ["mean", "gaussian", "quantile", "caa", "iti-probe"])
@pytest.mark.parametrize("family", ["gemma3_text", "zamba2"])
def test_maps_of_every_form_are_the_same(family: str, method: str) -> None:
    case = language_model(family)
    check(case, case.sites("norms")[:5], method=method)


def test_outputs_that_flatten_the_tokens_are_rows_of_one_token() -> None:
    masked = language_model("opt")
    source, target = ([Batch(batch.run) for batch in side] for side in masked.sides)
    case = Case(masked.modules, (source, target))
    sites = case.sites("norms")
    assert set(sites) - set(masked.sites("norms")) == {f"model.decoder.layers.{n}.final_layer_norm" for n in (0, 1)}
    check(case, sites)


def test_order_is_that_of_execution_where_registration_has_another() -> None:
    for family in ("qwen3", "deepseek_v3", "bart"):
        case = language_model(family)
        leaves, registered = case.sites("leaves"), list(case.modules)
        assert leaves != sorted(leaves, key=registered.index)


@pytest.mark.parametrize("known", [1, 3, 5])
def test_maps_that_are_known_before_stop_nobody(known: int) -> None:
    case = language_model("llama")
    sites = case.sites("norms")
    wanted = one_after_another(case.modules, sites, case.sides)
    assert_same(in_lockstep(case.modules, sites, case.sides, known=wanted[:known]), wanted)


def test_a_later_run_goes_on_where_an_earlier_one_was_left() -> None:
    case = language_model("gpt_neox")
    sites = case.sites("norms")
    wanted = one_after_another(case.modules, sites, case.sides)
    lockstep, found, num_source = lockstep_of(case.modules, sites, case.sides), [], len(case.sides[0])
    for these in ([0, 1], [2], [3, 4]):
        with lockstep.running():
            for site in these:
                (samples,) = lockstep.read(site)
                found.append(fitted(samples[:num_source], samples[num_source:], "linear"))
                lockstep.move(site, found[site])
    assert_same(found, wanted)


@pytest.mark.parametrize("read", ["read", "read_last"])
def test_sites_that_are_read_together_are_passed_unmoved(read: str) -> None:
    case = language_model("olmo2")
    sites = case.sites("norms")
    groups = [[0, 1, 2], [3], [4, 5], [6, 7, 8]]
    lockstep, found, num_source = lockstep_of(case.modules, sites, case.sides), [], len(case.sides[0])
    for these in groups:
        with lockstep.running():
            together = getattr(lockstep, read)(*these)
        for site, samples in zip(these, together, strict=True):
            found.append(fitted(samples[:num_source], samples[num_source:], "linear"))
            lockstep.move(site, found[site])
    wanted: Maps = []
    for these in groups:
        before = dict(zip(sites, wanted, strict=False))
        wanted += [one_map(case.modules, sites[site], case.sides, before=before) for site in these]
    assert_same(found, wanted)
    assert any(one is not None and one.moves.any() for one in wanted)


def test_a_batch_of_a_side_that_is_not_moved_reads_what_the_model_has() -> None:
    case = language_model("llama")
    sites = case.sites("norms")
    lockstep, num_source = lockstep_of(case.modules, sites, case.sides), len(case.sides[0])
    targets = []
    with lockstep.running():
        for site in range(len(sites)):
            (samples,) = lockstep.read(site)
            targets.append(samples[num_source:])
            lockstep.move(site, fitted(samples[:num_source], samples[num_source:], "linear"))
    other = lockstep_of(case.modules, sites, case.sides)
    with other.running():
        plain = other.read(*range(len(sites)))
    for moved, unmoved in zip(targets, plain, strict=True):
        for one, same in zip(moved, unmoved[num_source:], strict=True):
            assert one is not None
            assert same is not None
            assert torch.equal(one, same)
