import os
import shutil
from pathlib import Path

import pytest

from jobs.fit import fit
from pipeline.errors import DamagedRunError, OtherPlanError, PromptFileNotFoundError
from pipeline.storage import LocalStorage
from pipeline.verify import verify
from schemas.events import Event, Notice


def harm(run, *patterns):
    """Flips a bit in the middle of the first file of each pattern; returns their names."""
    keys = []
    for pattern in patterns:
        path = sorted(run.glob(pattern))[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        keys.append(path.relative_to(run).as_posix())
    return keys


def stamps(run):
    """When each file was written last; leases come and go."""
    found = (path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and "lease" not in path.parts)
    return {path.relative_to(run).as_posix(): path.stat().st_mtime_ns for path in found}


def damages(run):
    return [damage.key for damage in verify(LocalStorage(run)) if damage.kind != "unknown"]


@pytest.fixture
def copied(finished, tmp_path):
    """Returns a copy of a finished run, its spec and its prompts: they lie beside it."""

    def copy(kind):
        shutil.copytree(finished(kind).parent, tmp_path / kind, symlinks=True)
        return tmp_path / kind / "run"

    return copy


def repaired(run):
    """Repairs a run, which then has no damage and the same steer; returns what was told, and what files changed."""
    before: dict[str, object] = stamps(run)
    told: list[Event] = []
    (steer,) = (path.name for path in (run / "steers").iterdir())
    fit(run.parent / "spec.yaml", run, run.parent / "cache", told.append, damage="repair")
    assert damages(run) == []
    assert (run / "CURRENT").read_text() == f"{steer}\n"
    assert os.readlink(run / "steer") == f"steers/{steer}"
    after = stamps(run)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    return [event.sentence for event in told if isinstance(event, Notice)], changed


@pytest.mark.slow
def test_what_needs_no_model_is_written_anew_and_nothing_else_is_touched(copied):
    run = copied("sketched")
    harmed = harm(run, "plan.json", "spec.yaml", "prompts/source.parquet", "prompts/target.parquet.json")
    harmed += harm(run, "activations.zarr/source/zarr.json", "frames/*", "running/*", "folds/source/*/c/*/*")
    told, changed = repaired(run)
    beside = {f"prompts/{side}.parquet{end}" for side in ("source", "target") for end in ("", ".json")}
    fold = {key for key in changed if key.startswith("folds/source/")}
    assert changed == {*harmed, *beside, *fold, "spec.yaml.sha256", "inputs.json"}
    assert "the prompts of the source were damaged and are written anew" in told


def test_damaged_units_and_steers_are_computed_again_and_no_others(copied):
    run = copied("exact")
    harm(run, "activations.zarr/source/c/1/0", "receipts/target/00000000.json", "steers/*/steer.safetensors")
    told, changed = repaired(run)
    units = {"activations.zarr/source/c/1/0", "receipts/source/00000001.json", "sketches.zarr/tokens/c/1/0/0"}
    units |= {"activations.zarr/target/c/0/0", "receipts/target/00000000.json"}
    steer = {key for key in changed if key.startswith("steers/")}
    assert changed == {*units, *steer, "CURRENT", "timings.json", "inputs.json"}
    assert "2 damaged units run again: source unit 1, target unit 0" in told


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["folds/source/*/c/*/*", "receipts/source/00000000.json"])
def test_units_whose_sketches_were_merged_run_again_with_a_damaged_fold_or_receipt(copied, pattern):
    run = copied("merged")
    harm(run, pattern)
    told, changed = repaired(run)
    assert "2 damaged units run again: source unit 0, source unit 1" in told
    beside = ("steers/", "running/", "folds/")  # a reducer writes all its folds, the same as before
    assert not any("target" in key for key in changed if not key.startswith(beside))


@pytest.mark.slow
def test_a_folder_in_the_place_of_a_file_is_removed(copied):
    run = copied("exact")
    for key in ("CURRENT", "spec.yaml", "timings.json"):
        (run / key).unlink()
        (run / key).mkdir()
        (run / key / "file").write_text("in the way")
    repaired(run)


def test_without_repair_a_damaged_run_stops_and_says_what_to_do(copied):
    run = copied("exact")
    harm(run, "receipts/source/00000001.json")
    with pytest.raises(DamagedRunError, match="--repair"):
        fit(run.parent / "spec.yaml", run, run.parent / "cache")


def test_a_run_of_another_plan_and_one_whose_input_is_gone_are_left_alone(copied):
    run = copied("exact")
    harm(run, "plan.json", "prompts/source.parquet", "activations.zarr/source/c/1/0")
    before, source = stamps(run), run.parent / "source.txt"
    text = source.read_text()
    source.write_text(text.replace("late", "early"))
    with pytest.raises(OtherPlanError, match=r"no receipt or prompts of this plan"):
        fit(run.parent / "spec.yaml", run, run.parent / "cache", damage="repair")
    source.unlink()
    with pytest.raises(PromptFileNotFoundError):
        fit(run.parent / "spec.yaml", run, run.parent / "cache", damage="repair")
    assert stamps(run) == before
    source.write_text(text)
    repaired(run)


@pytest.mark.parametrize("name", ["prompts/source.parquet", "CURRENT"])
def test_a_folder_that_is_someone_elses_is_not_taken_for_what_is_left_of_a_run(copied, tmp_path, name):
    spec = copied("exact").parent / "spec.yaml"
    theirs = tmp_path / "home" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    with pytest.raises(OtherPlanError, match=r"no receipt or prompts of this plan"):
        fit(spec, tmp_path / "home", tmp_path / "cache", damage="repair")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_bytes() == b"mine"


def test_a_place_without_a_run_is_not_repaired(copied, tmp_path):
    spec = copied("exact").parent / "spec.yaml"
    home = Path(tmp_path, "home")
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    with pytest.raises(OtherPlanError, match=r"thesis\.txt"):
        fit(spec, home, tmp_path / "cache", damage="repair")
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]
