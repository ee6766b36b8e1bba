"""Run folders that cannot be used, through the command line."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.runs import write_spec


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/run", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_written(actmap, llama, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    before = sorted(tmp_path.rglob("*"))
    done = actmap("fit", spec, "--run", tmp_path / place)
    assert (done.code, done.out) == (74, "")
    assert done.err.splitlines()[-1].startswith(f"actmap: {tmp_path / place} cannot be written: ")
    assert "Traceback" not in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_something_else_in_it_is_left_alone(actmap, llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    done = actmap("fit", spec, "--run", tmp_path / "home")
    assert done.code == 2
    assert "thesis.txt" in done.refusal
    assert "name a new folder" in done.refusal
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooling": "max"}, "pooling was mean and is max"),
        ({"transport": {"method": "mean"}}, "transport.method was linear and is mean"),
        ({"compute": {"unit_size": 5}}, "compute.unit_size was 8 and is 5"),
        ({"source": {"limit": 7}}, "source.num_prompts was 40 and is 7"),
        ({"hookpoints": "model.norm"}, "its hookpoints are others"),
        ({"template": "chat"}, "has no chat template"),
    ],
)
def test_another_spec_on_the_folder_of_a_run_is_refused_and_says_what_differs(
    actmap, llama, fitted, changes, words, tmp_path
):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)}, **changes)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = actmap("fit", spec, "--run", run)
    assert done.code == 2
    assert words in done.refusal
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_folder_that_holds_no_run(actmap, llama, tmp_path, command):
    (tmp_path / "file").write_text("")
    for place in (llama, tmp_path / "none", tmp_path / "file"):
        done = actmap(command, place)
        assert done.code == 2
        assert f"no run at {place}" in done.refusal
    assert not (llama / "report.html").exists()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("part", ["plan.json", "receipts/source/00000001.json", "timings.json"])
@pytest.mark.parametrize("data", [b"", b"[]"])
def test_a_damaged_record_of_a_run_is_named(actmap, fitted, tmp_path, part, data):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    (run / part).write_bytes(data)
    commands = [("report", run), ("fit", fitted.parent / "spec.yaml", "--run", run), ("status", run)]
    for command in commands[: 2 if part == "timings.json" else 3]:
        done = actmap(*command)
        assert (done.code, done.out) == (74, "")
        assert f"{run / part} is damaged: " in done.err.splitlines()[-1]
        assert "Traceback" not in done.err


def test_a_report_of_a_run_without_a_steer(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    (run / "CURRENT").unlink()
    (run / "steer").unlink()
    done = actmap("report", run)
    assert done.code == 2
    assert f"no steer at {run / 'steer'}" in done.refusal
    assert actmap("status", run, "--json").json["state"] == "fitting"
