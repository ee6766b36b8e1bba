import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from act.errors import SteerFileError, SteerNotFoundError
from act.steer import CARD, TENSORS, load
from schemas import record
from schemas.card import Card
from tests.steers import (
    WIDTHS,
    bits,
    forge,
    make_card,
    make_quantile_steer,
    make_steer,
    tensors_of,
)

ONE = {"ünet.mid@2": 4}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_steer().save(tmp_path / "steer")
    return tmp_path / "steer"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One site, so that every byte can be tried."""
    make_steer(ONE).save(tmp_path / "steer")
    return tmp_path / "steer"


@pytest.mark.slow
def test_every_flipped_byte_of_the_tensors_is_found(small: Path) -> None:
    data = (small / TENSORS).read_bytes()
    for place in range(len(data)):
        (small / TENSORS).write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        with pytest.raises(SteerFileError):
            load(small)
    (small / TENSORS).write_bytes(data)
    assert bits(load(small)) == bits(make_steer(ONE))


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0x01, 0x20])
def test_every_flipped_byte_of_the_card_is_found(small: Path, flip: int) -> None:
    data = (small / CARD).read_bytes()
    for place in range(len(data)):
        (small / CARD).write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        with pytest.raises(SteerFileError):
            load(small)
    (small / CARD).write_bytes(data)
    load(small)


@pytest.mark.parametrize(
    "change",
    [
        {"timesteps": (998.0, 1 / 3)},
        {"model_fingerprint": "f" * 64},
        {"support": "unbounded"},
        {"name": "other"},
        {"spec": {}},
        {"checksum": "0" * 64},
        {"checksum": ""},
    ],
)
def test_an_edited_card_is_refused(saved: Path, change: dict[str, Any]) -> None:
    card = record.load(Card, (saved / CARD).read_bytes())
    (saved / CARD).write_bytes(record.dump(dataclasses.replace(card, **change)))
    with pytest.raises(
        SteerFileError, match="it is not as it was written, its checksum differs; fetch or fit it again"
    ):
        load(saved)


@pytest.mark.parametrize("name", [TENSORS, CARD])
def test_a_truncated_file_is_refused(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    for length in (0, 1, 8, len(data) // 2, len(data) - 1):
        (saved / name).write_bytes(data[:length])
        with pytest.raises(SteerFileError):
            load(saved)
    (saved / name).write_bytes(data + b"\0")
    with pytest.raises(SteerFileError):
        load(saved)


@pytest.mark.parametrize("missing", [TENSORS, CARD])
def test_a_missing_file_is_named(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(
        SteerNotFoundError, match=r"no steer at .*; wanted a folder with steer.json and steer.safetensors"
    ):
        load(saved)
    (saved / missing).mkdir()
    with pytest.raises(SteerNotFoundError):
        load(saved)


def test_no_folder_is_no_steer(saved: Path) -> None:
    for place in (saved / "nowhere", saved / CARD):
        with pytest.raises(SteerNotFoundError):
            load(place)


def test_a_format_of_the_future_is_named(saved: Path) -> None:
    tree = json.loads((saved / CARD).read_bytes()) | {"format_version": 4, "novelty": True}
    (saved / CARD).write_text(json.dumps(tree))
    with pytest.raises(SteerFileError, match="its format version is 4, this actmap reads 3; take a newer actmap"):
        load(saved)


@pytest.mark.parametrize("version", [1, 2])
def test_an_earlier_format_is_named_and_what_to_do_about_it(saved: Path, version: int) -> None:
    tree = json.loads((saved / CARD).read_bytes()) | {"format_version": version}
    (saved / CARD).write_text(json.dumps(tree))
    with pytest.raises(
        SteerFileError, match=f"is {version}, this actmap reads 3; fit it again, or take an older actmap"
    ):
        load(saved)


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.0, True, [1]])
def test_no_other_format_is_read(saved: Path, version: Any) -> None:
    tree = json.loads((saved / CARD).read_bytes()) | {"format_version": version}
    (saved / CARD).write_text(json.dumps(tree))
    with pytest.raises(SteerFileError, match=r"no card of a steer: Card.format_version: found .*, wanted one of 3"):
        load(saved)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"[" * 10**5, b"\xff\xfe", b'{"format_version": NaN}'])
def test_a_hostile_card_is_refused(saved: Path, data: bytes) -> None:
    (saved / CARD).write_bytes(data)
    with pytest.raises(SteerFileError):
        load(saved)


def test_a_huge_card_is_refused_before_it_is_parsed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 1000)
    assert (saved / CARD).stat().st_size > 1000
    with pytest.raises(SteerFileError, match="more than the 1000 that it may have"):
        load(saved)


def test_a_forged_card_with_its_own_tensors_is_a_steer(saved: Path) -> None:
    # The other forgeries are refused for what is wrong with them, not for being forged.
    forge(saved, {name: part + 1 for name, part in tensors_of(make_steer()).items()})
    load(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.0.norm.scale", torch.zeros(4)),
        ("model.layers.0.norm.scale", torch.zeros(3, 1)),
        ("model.layers.0.norm.scale", torch.zeros(3, dtype=torch.float64)),
        ("model.layers.0.norm.scale", torch.zeros(3, dtype=torch.int32)),
        ("model.layers.0.norm.scale", torch.tensor([0.0, torch.nan, 0.0])),
        ("model.layers.0.norm.shift", torch.tensor([0.0, torch.inf, 0.0])),
        ("model.layers.0.norm.low", torch.full((3,), torch.nan)),
        ("model.layers.0.norm.low", torch.full((3,), torch.inf)),
        ("model.layers.0.norm.error", torch.full((3,), torch.nan)),
        ("model.layers.0.norm.error", torch.full((3,), -1.0)),
        ("model.layers.0.norm.error", None),
        ("model.layers.0.norm.knots_x", torch.zeros(3, 2)),
        ("model.layers.9.norm.low", torch.zeros(3)),
        ("model.layers.0.norm.high", None),
    ],
)
def test_tensors_that_are_no_maps_are_refused(saved: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = tensors_of(make_steer())
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    forge(saved, tensors)
    with pytest.raises(SteerFileError, match="its tensors are"):
        load(saved)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("knots_x", torch.zeros(3)),
        ("knots_x", torch.zeros(3, 6)),
        ("knots_x", torch.zeros(4, 7)),
        ("knots_x", torch.zeros(3, 7, 1)),
        ("knots_x", torch.zeros(3, 7, dtype=torch.float64)),
        ("knots_x", torch.arange(7.0).flip(0).expand(3, 7).contiguous()),
        ("knots_y", torch.full((3, 7), torch.nan)),
        ("knots_y", torch.full((3, 7), torch.inf)),
        ("knots_y", None),
        ("knots_z", torch.zeros(3, 7)),
    ],
)
def test_knots_that_are_none_are_refused(tmp_path: Path, part: str, value: torch.Tensor | None) -> None:
    steer = make_quantile_steer()
    steer.save(tmp_path)
    tensors = tensors_of(steer)
    forge(tmp_path, tensors)
    load(tmp_path)
    if value is None:
        del tensors[f"model.layers.0.norm.{part}"]
    else:
        tensors[f"model.layers.0.norm.{part}"] = value
    forge(tmp_path, tensors)
    with pytest.raises(SteerFileError, match="its tensors are"):
        load(tmp_path)


def test_too_many_knots_and_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steer = make_quantile_steer()
    steer.save(tmp_path)
    monkeypatch.setattr("act.steer.MAX_KNOTS", 6)
    with pytest.raises(SteerFileError, match="its tensors are"):
        load(tmp_path)
    monkeypatch.undo()
    forge(
        tmp_path, {name: part[:, :0].clone() if "knots" in name else part for name, part in tensors_of(steer).items()}
    )
    with pytest.raises(SteerFileError, match="its tensors are"):
        load(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**9, 2**63 - 1, 2**64 - 1])
def test_a_lying_header_is_refused(saved: Path, length: int) -> None:
    data = (saved / TENSORS).read_bytes()
    forge(saved, struct.pack("<Q", length) + data[8:])
    with pytest.raises(SteerFileError, match="it holds no tensors"):
        load(saved)


def test_widths_that_disagree_are_refused(saved: Path) -> None:
    data, card = (saved / TENSORS).read_bytes(), make_card(WIDTHS)
    for width in (0, -1, 4, 2**62):
        sites = (dataclasses.replace(card.sites[0], width=width), *card.sites[1:])
        forge(saved, data, sites=sites)
        with pytest.raises(SteerFileError):
            load(saved)


def test_a_site_named_twice_is_refused(saved: Path) -> None:
    data, card = (saved / TENSORS).read_bytes(), make_card(WIDTHS)
    forge(saved, data, sites=(card.sites[0], *card.sites))
    with pytest.raises(SteerFileError, match="a site named twice"):
        load(saved)
