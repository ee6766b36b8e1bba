import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

import act
from act.errors import SteerExistsError, SteerFileError
from act.steer import CARD, README, TENSORS, Steer, load
from act.transport import QuantileMap, TransportMap
from tests.steers import (
    WIDTHS,
    bits,
    make_card,
    make_map,
    make_quantile_steer,
    make_steer,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_steer().save(tmp_path / "steer")
    return tmp_path / "steer"


def test_a_steer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    steer = make_steer()
    saved = steer.save(tmp_path / "steer")
    found = load(tmp_path / "steer")
    assert bits(found) == bits(steer) == bits(saved)
    assert found.card == saved.card
    assert dataclasses.replace(found.card, tensors="", checksum="") == steer.card
    assert list(found.maps) == list(WIDTHS)


def test_maps_with_knots_come_back_bit_for_bit(tmp_path: Path) -> None:
    steer = make_quantile_steer()
    steer.save(tmp_path / "steer")
    found = load(tmp_path / "steer")
    assert bits(found) == bits(steer)
    assert {type(transport) for transport in found.maps.values()} == {QuantileMap}
    tensors = safetensors.torch.load_file(tmp_path / "steer" / TENSORS)
    assert {name: tuple(part.shape) for name, part in tensors.items() if "knots" in name} == {
        f"{name}.{part}": (width, 7) for name, width in WIDTHS.items() for part in ("knots_x", "knots_y")
    }
    assert "full monotone transport" in (tmp_path / "steer" / README).read_text("utf-8")


def test_the_card_names_the_kind_of_its_maps() -> None:
    quantile, affine = make_quantile_steer(), make_steer()
    with pytest.raises(SteerFileError, match=r"the card's method is linear, model.layers.0.norm has a QuantileMap"):
        Steer(affine.card, quantile.maps)
    with pytest.raises(SteerFileError, match=r"the card's method is quantile, .* has a TransportMap"):
        Steer(quantile.card, affine.maps)


def test_the_page_for_a_person_has_a_row_a_site_with_all_that_the_card_says(saved: Path) -> None:
    lines = (saved / README).read_text("utf-8").splitlines()
    header, row = (
        next(line for line in lines if line.startswith(start)) for start in ("| site |", "| `model.layers.0")
    )
    assert header == (
        "| site | module | neurons | displacement | samples | tokens | moved | error, median | error, worst | misfit |"
    )
    assert row == "| `model.layers.0.norm` | LayerNorm | 3 | 1.100 | 0.667 | 0.250 | 1.000 | 1e-07 | 0.01 | 0 |"
    assert "moving all neurons" in " ".join(lines)


def test_the_folder_is_the_contract(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted([TENSORS, CARD, README])
    tensors = safetensors.torch.load_file(saved / TENSORS)
    assert {name: (tuple(part.shape), part.dtype) for name, part in tensors.items()} == {
        f"{name}.{part}": ((width,), torch.float32)
        for name, width in WIDTHS.items()
        for part in ("scale", "shift", "low", "high", "error")
    }
    card = json.loads((saved / CARD).read_text("utf-8"))
    assert card["format_version"] == 3
    assert [site["hookpoint"] for site in card["sites"]] == list(WIDTHS)
    assert "less toxic 🎸" in (saved / README).read_text("utf-8")


def test_strings_and_paths_are_places(tmp_path: Path) -> None:
    make_steer().save(str(tmp_path / "steer"))
    assert bits(act.load(str(tmp_path / "steer"))) == bits(act.load(tmp_path / "steer"))


def test_a_relative_place_and_missing_parents_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_steer().save("runs/a/steer")
    assert bits(load("runs/a/steer")) == bits(make_steer())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make_steer().save(".")
    assert bits(load(tmp_path / "here")) == bits(make_steer())


def test_maps_that_share_memory_are_saved(tmp_path: Path) -> None:
    vector = torch.arange(6.0)
    shared = TransportMap(vector[:3], vector[:3], vector[:3], vector[3:])
    steer = Steer(make_card({"a": 3, "b": 3}), {"a": shared, "b": shared})
    steer.save(tmp_path / "steer")
    assert bits(load(tmp_path / "steer")) == bits(steer)


def test_saving_again_does_nothing(saved: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in saved.iterdir()}
    again = make_steer().save(saved)
    assert again.card == load(saved).card
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["steer"]


def test_a_loaded_steer_is_saved_with_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    load(saved).save(tmp_path / "copy")
    for name in (TENSORS, CARD, README):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("there", ["another steer", "a file", "something else", "the same, damaged"])
def test_nothing_else_is_overwritten(saved: Path, there: str) -> None:
    steer = make_steer()
    match there:
        case "another steer":
            steer = Steer(dataclasses.replace(steer.card, name="other"), steer.maps)
        case "a file":
            saved = saved / CARD
        case "something else":
            (saved / CARD).unlink()
        case _:
            (saved / TENSORS).write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in saved.parent.rglob("*") if path.is_file()}
    with pytest.raises(SteerExistsError, match="exists and holds something else; save to a new folder"):
        steer.save(saved)
    assert {path: path.read_bytes() for path in saved.parent.rglob("*") if path.is_file()} == before


def test_of_many_savers_of_one_steer_all_succeed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(lambda number: make_steer().save(tmp_path / "steer").card, range(8)))
    assert len({card.checksum for card in cards}) == 1
    assert bits(load(tmp_path / "steer")) == bits(make_steer())
    assert [path.name for path in tmp_path.iterdir()] == ["steer"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail_third(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_third)
    with pytest.raises(OSError, match="No space"):
        make_steer().save(tmp_path / "steer")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    code = "import sys; from tests.steers import make_steer; make_steer().save(sys.argv[1])"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], cwd=ROOT, env=environment, check=True)
    for name in (TENSORS, CARD, README):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_card_and_maps_must_speak_of_the_same_sites() -> None:
    with pytest.raises(SteerFileError, match=r"the card and the maps differ in b \(3 neurons\)"):
        Steer(make_card({"a": 3, "b": 3}), {"a": make_map(3, 0)})
    with pytest.raises(SteerFileError, match=r"differ in a \(3 neurons\), a \(4 neurons\)"):
        Steer(make_card({"a": 3}), {"a": make_map(4, 0)})
