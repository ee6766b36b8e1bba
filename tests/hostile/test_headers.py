"""Headers of safetensors files that claim too much: refused by their size, before anything parses them."""

import json
import struct

import pytest
import safetensors.torch
import torch

from act.errors import SteerFileError
from act.steer import TENSORS, load
from pipeline.errors import ModelLoadError
from pipeline.models.files import MAX_HEADER_BYTES, opened, weight_files
from pipeline.models.pipeline_folder import PipelineFolder
from schemas.headers import HeaderError, check_header, header_limit
from tests.steers import forge, make_steer

ONE = {"norm": 4}
MOST = header_limit(5)


def spaced(data: bytes, length: int) -> bytes:
    """The same tensors under a header that ends in spaces, which every parser accepts."""
    (found,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + found].rstrip(b" ")
    return struct.pack("<Q", length) + header.ljust(length) + data[8 + found :]


def claiming(length: int) -> bytes:
    """A file of a few bytes whose header claims so many."""
    return struct.pack("<Q", length) + b'{"a": '


@pytest.fixture
def unparsed(monkeypatch):
    """Fails the test if a header is parsed."""

    def parse(*_args, **_kwargs):
        raise AssertionError("parsed")

    monkeypatch.setattr(safetensors.torch, "load", parse)
    monkeypatch.setattr("pipeline.models.files.safetensors.safe_open", parse)


@pytest.mark.parametrize("length", [MOST + 1, 99_000_000, 101_000_000, 1 << 40, (1 << 64) - 1])
def test_a_steer_whose_header_claims_too_much_is_refused_unparsed(tmp_path, unparsed, length):
    make_steer(ONE).save(tmp_path / "steer")
    forge(tmp_path / "steer", claiming(length))
    with pytest.raises(SteerFileError, match=f"its header claims {length} bytes, more than the {MOST} that it may"):
        load(tmp_path / "steer")


def test_a_steer_of_spaces_is_refused_by_its_size_before_it_is_read(tmp_path):
    make_steer(ONE).save(tmp_path / "steer")
    with (tmp_path / "steer" / TENSORS).open("r+b") as file:
        file.truncate(99_000_000)
    with pytest.raises(SteerFileError, match="it has 99000000 bytes, more than the"):
        load(tmp_path / "steer")


def test_a_steer_may_have_a_roomy_header(tmp_path):
    make_steer(ONE).save(tmp_path / "steer")
    data = (tmp_path / "steer" / TENSORS).read_bytes()
    forge(tmp_path / "steer", spaced(data, MOST // 8 * 8))
    load(tmp_path / "steer")


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 99_000_000, 101_000_000, 1 << 40, (1 << 64) - 1])
def test_a_checkpoint_whose_header_claims_too_much_is_refused_unparsed(tmp_path, unparsed, length):
    (tmp_path / "model.safetensors").write_bytes(claiming(length))
    with pytest.raises(ModelLoadError, match=f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES}"):
        weight_files(tmp_path)


def test_a_component_of_a_pipeline_is_held_to_the_same(tmp_path, unparsed):
    (tmp_path / "model_index.json").write_text('{"_class_name": "Any", "unet": ["diffusers", "Any"]}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(claiming(1 << 40))
    with pytest.raises(ModelLoadError, match="its header claims 1099511627776 bytes"):
        _ = PipelineFolder(tmp_path).counts


def test_a_checkpoint_may_have_a_roomy_header(tmp_path):
    data = safetensors.torch.save({"a": torch.zeros(3)})
    (tmp_path / "model.safetensors").write_bytes(spaced(data, 1 << 20))
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1 << 63], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 63]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        [],
    ],
)
def test_a_header_that_lies_about_its_tensors_is_refused_for_steers_and_checkpoints(tmp_path, tensor):
    header = json.dumps({"norm.scale": tensor}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelLoadError), opened(tmp_path / "model.safetensors"):
        pass
    make_steer(ONE).save(tmp_path / "steer")
    forge(tmp_path / "steer", data)
    with pytest.raises(SteerFileError, match="it holds no tensors"):
        load(tmp_path / "steer")


def test_the_limit_itself_is_allowed_and_a_start_too_short_to_claim_is_the_parsers():
    check_header(struct.pack("<Q", 10), 10)
    check_header(b"\xff" * 7, 10)
    with pytest.raises(HeaderError, match="its header claims 11 bytes, more than the 10 that it may have"):
        check_header(struct.pack("<Q", 11), 10)
