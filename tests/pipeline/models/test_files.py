import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pipeline.errors import ModelNotFoundError
from pipeline.models.files import find_folder, setting_files


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the hub was asked for; it gives an empty folder."""
    calls: list[dict[str, Any]] = []

    def download(repo: str, **asked: Any) -> str:
        calls.append({"repo": repo} | asked)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_what_may_be_a_hub_id_is_not_looked_for_in_the_working_directory(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "work/org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert find_folder("org/name", None) == tmp_path
    assert [call["repo"] for call in asked] == ["org/name"]


@pytest.mark.parametrize("path", ["{}/none", "./org/name", "a/b/c", "name", "~/none-such", "~nobody-such/x", "../x/y"])
def test_what_can_be_no_hub_id_is_not_asked_for(asked: list[dict[str, Any]], tmp_path: Path, path: str):
    with pytest.raises(ModelNotFoundError, match="no such folder, and it is no hub id"):
        find_folder(path.format(tmp_path), None)
    assert asked == []


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_folder("~/model", None) == (tmp_path / "model").resolve()


def test_of_a_hub_id_with_a_gguf_file_that_file_alone_is_fetched(asked: list[dict[str, Any]]):
    find_folder("org/name", "main", "q8.gguf")
    find_folder("org/name", None)
    assert asked[0]["allow_patterns"] == ["q8.gguf"]
    assert not any("gguf" in pattern for pattern in asked[1]["allow_patterns"])
    assert "*.safetensors" in asked[1]["allow_patterns"]


def test_setting_files_are_regular_files(tmp_path: Path):
    for name in ("b.json", "a.txt", "c.model", "d.jinja", "e.tiktoken", "f.py", "g.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.json").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "broken.json")
    assert [path.name for path in setting_files(tmp_path)] == ["a.txt", "b.json", "c.model", "d.jinja", "e.tiktoken"]
