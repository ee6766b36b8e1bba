from pathlib import Path

import pytest

from pipeline.errors import ModelLoadError
from pipeline.models import gguf
from pipeline.models.gguf import dequantise
from tests.pipeline.models.gguf_files import write_gguf


def test_a_file_becomes_a_folder_that_appears_whole(tmp_path: Path):
    write_gguf(tmp_path / "a.gguf")
    dequantise(tmp_path, "a.gguf", tmp_path / "cache/copy")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "cache/copy").iterdir()
    }
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["copy"]


def test_a_file_that_lacks_a_weight_is_refused_before_anything_is_saved(tmp_path: Path):
    write_gguf(tmp_path / "a.gguf", without="blk.0.ffn_up.weight")
    with pytest.raises(ModelLoadError, match=r"a\.gguf cannot be loaded: its weights lack model\.layers\.0\.mlp\.up"):
        dequantise(tmp_path, "a.gguf", tmp_path / "cache/copy")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"a\.gguf cannot be loaded"):
        dequantise(tmp_path, "a.gguf", tmp_path / "cache/copy")


def test_the_copy_of_a_faster_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(tmp_path / "a.gguf")
    to = tmp_path / "cache/copy"
    forget = gguf._forget_quantisation

    def other_process_finishes(model: object) -> None:
        forget(model)
        to.mkdir()
        (to / "config.json").write_text("of the other")

    monkeypatch.setattr(gguf, "_forget_quantisation", other_process_finishes)
    dequantise(tmp_path, "a.gguf", to)
    assert (to / "config.json").read_text() == "of the other"
    assert [path.name for path in to.parent.iterdir()] == ["copy"]
