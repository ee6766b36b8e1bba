"""Fits of whole models with what suspended forwards keep moved out of memory.

Whoever reads an emptied storage ends the process without an exception, so `test_spill` runs this file by a pytest of
its own; its name keeps others from collecting it.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from act.errors import SpillError
from act.lockstep.spill import Spill
from tests.act.lockstep.engine import in_lockstep
from tests.act.lockstep.models import Case, Kind, language_model, unet
from tests.act.lockstep.oracle import Maps, assert_same

FAMILIES = ["gpt2", "llama", "mamba", "mixtral", "gemma3_text", "bloom", "falcon", "jamba"]


def case_of(name: str) -> Case:
    return unet() if name == "unet" else language_model(name)


def fitted(case: Case, sites: list[str], spill: Spill) -> Maps:
    with spill:
        return in_lockstep(case.modules, sites, case.sides, turn=spill.turn)


def largest_passage(case: Case, sites: list[str], folder: Path) -> int:
    """Most bytes that one passage has when it stops: with no budget, only one is in memory."""
    spill = Spill(case.modules, 0, folder)
    fitted(case, sites, spill)
    return spill.peak


@pytest.mark.parametrize("kind", ["norms", "projections"])
@pytest.mark.parametrize("name", [*FAMILIES, "unet"])
def test_maps_are_those_without_a_limit(name: str, kind: Kind, tmp_path: Path) -> None:
    case = case_of(name)
    sites = case.sites(kind)
    wanted = in_lockstep(case.modules, sites, case.sides)
    unlimited = Spill(case.modules, 1 << 40, tmp_path)
    assert_same(fitted(case, sites, unlimited), wanted)
    largest, live = largest_passage(case, sites, tmp_path), unlimited.peak

    assert unlimited.moved == 0
    assert largest < live
    for budget in (0, live // 8, live // 2):
        spill = Spill(case.modules, budget, tmp_path)
        assert_same(fitted(case, sites, spill), wanted)
        assert spill.peak <= budget + largest
        assert spill.moved > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "unet"])
def test_host_memory_comes_before_the_disk(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    sites = case.sites("norms")
    wanted = in_lockstep(case.modules, sites, case.sides)

    for host_budget in (largest_passage(case, sites, tmp_path), 1 << 40):
        assert_same(fitted(case, sites, Spill(case.modules, 0, tmp_path, host_budget)), wanted)


@pytest.fixture
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_error_and_leaves_the_model_whole(tmp_path: Path) -> None:
    case = language_model("llama")
    sites = case.sites("norms")

    with pytest.raises(SpillError, match=r"cannot hold .* File too large; free space there"):
        fitted(case, sites, Spill(case.modules, 0, tmp_path))

    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_hooks for module in case.modules.values())
    assert_same(
        fitted(case, sites, Spill(case.modules, 1 << 40, tmp_path)), in_lockstep(case.modules, sites, case.sides)
    )
