import dataclasses
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.plan import read_plan
from pipeline.storage import LocalStorage
from pipeline.verify import Seen, verify, verify_steer
from schemas import record
from schemas.fold import Fold
from schemas.plan import LAWS
from schemas.receipt import Quarantined, Receipt


def flip(path, rng, outside):
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def truncate(path, rng, outside):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def empty(path, rng, outside):
    path.write_bytes(b"")


def append(path, rng, outside):
    path.write_bytes(path.read_bytes() + b"\n")


def delete(path, rng, outside):
    path.unlink()


def turn_into_folder(path, rng, outside):
    path.unlink()
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def turn_into_link(path, rng, outside):
    shutil.copyfile(path, outside)
    path.unlink()
    path.symlink_to(outside)


HARMS = (truncate, empty, append, delete, turn_into_folder, turn_into_link)

#: What may be missing: a run can do without it, or has the same in its folds.
SPARE = ("running/", "timings.json", "inputs.json", "lease/", "folds/", *(f"sketches.zarr/{law}/c/" for law in LAWS))


@contextmanager
def harmed(path, harm, rng, outside):
    """A context in which a file is harmed."""
    data = path.read_bytes()
    try:
        harm(path, rng, outside)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def files(run):
    """The files of a run that say something; a heartbeat is a bare number, and the end of a lease is empty."""
    found = (path for path in sorted(run.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in found if path.suffix not in {".beat", ".released"}]


def damages(run):
    return [damage for damage in verify(LocalStorage(run)) if damage.kind != "unknown"]


@pytest.fixture
def copied(finished, tmp_path):
    return lambda kind: Path(shutil.copytree(finished(kind), tmp_path / kind, symlinks=True))


@pytest.mark.parametrize("kind", ["exact", pytest.param("merged", marks=pytest.mark.slow)])
def test_a_finished_run_is_whole_and_each_prompt_counts_once(finished, kind):
    seen, storage = Seen(), LocalStorage(finished(kind))
    assert list(verify(storage, seen)) == []
    assert seen.counted == read_plan(storage).num_prompts == 68
    assert (seen.quarantined, seen.removed, seen.units) == (0, 0, 5)
    whole = [path for path in finished(kind).rglob("*") if path.is_file() and not path.is_symlink()]
    assert seen.files == len(whole)
    assert seen.num_bytes == sum(path.stat().st_size for path in whole)


def sweep(run, paths, outside, seed, harms):
    """Harms files in some ways, one at a time; each time the file has to be named, and before all others."""
    for number, path in enumerate(paths):
        key = path.relative_to(run).as_posix()
        for harm in harms(number):
            with harmed(path, harm, random.Random(f"{seed} {key} {harm.__name__}"), outside):
                found = [damage.key for damage in damages(run)]
            if harm not in {delete, turn_into_link} or not key.startswith(SPARE):
                assert key in found, f"{harm.__name__} of {key} with seed {seed} went unseen"
                first = harm is delete or key.endswith(".sha256") or found[0] == key
                assert first, f"{harm.__name__} of {key}: {found}"
    assert damages(run) == []


@pytest.mark.parametrize(
    "kind", ["exact", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sketched", "merged"))]
)
def test_a_bit_flipped_in_each_file_is_found(copied, kind):
    """All at once, but for files by which others are judged: a round for those, and one for the plan."""
    run = copied(kind)
    judges = [path for path in files(run) if path.match("receipts/*/*") or path.match("folds/*/*.json")]
    judges += [run / name for name in ("CURRENT", "spec.yaml.sha256")]
    judges += [*run.glob("prompts/*.json"), *run.glob("steers/*/steer.json")]
    plan = [run / "plan.json"]
    judged = [path for path in files(run) if path not in {*judges, *plan}]
    for paths in (judged, judges, plan):
        before = {path: path.read_bytes() for path in paths}
        for path in paths:
            flip(path, random.Random(path.name), None)
        found = {damage.key for damage in damages(run)}
        assert {path.relative_to(run).as_posix() for path in paths} <= found
        for path, data in before.items():
            path.write_bytes(data)
    assert damages(run) == []


@pytest.mark.slow
def test_the_first_file_named_is_the_one_that_was_harmed(copied, tmp_path):
    run = copied("merged")
    one_each = {(path.relative_to(run).parts[0], path.suffix): path for path in files(run)}
    sweep(run, one_each.values(), tmp_path / "outside", 0, lambda number: [HARMS[number % len(HARMS)]])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("kind", ["exact", "sketched", "merged"])
def test_any_harm_to_any_file_is_found(copied, kind, seed, tmp_path):
    run = copied(kind)
    sweep(run, files(run), tmp_path / "outside", seed, lambda number: [flip, *HARMS])


def test_receipts_in_the_place_of_others_are_found(copied, finished):
    run, other = copied("exact"), finished("sketched")
    first, second = (run / f"receipts/source/0000000{unit}.json" for unit in (0, 1))
    for path, data in (
        (first, second.read_bytes()),  # of another unit
        (second, (other / "receipts/source/00000001.json").read_bytes()),  # of another plan
    ):
        before = path.read_bytes()
        path.write_bytes(data)
        found = damages(run)[0]
        assert found.key == path.relative_to(run).as_posix()
        assert str(found.unit) == f"source unit {[first, second].index(path)}"
        path.write_bytes(before)


def test_a_good_shard_in_the_place_of_another_is_found(copied):
    run = copied("exact")
    first, second = (run / f"activations.zarr/source/c/{unit}/0" for unit in (0, 1))
    data = first.read_bytes(), second.read_bytes()
    assert data[0] != data[1]
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    assert [str(damage.unit) for damage in damages(run)] == ["source unit 0", "source unit 1"]


def rewritten(run, key, cls, **changes):
    """Changes a sealed record, seal and all."""
    path = run / key
    path.write_bytes(record.seal(dataclasses.replace(record.unseal(cls, path.read_bytes()), **changes)))


def test_a_receipt_that_does_not_account_for_each_prompt_once_is_found(copied):
    run = copied("exact")
    key = "receipts/target/00000001.json"
    receipt = record.unseal(Receipt, (run / key).read_bytes())
    lost = Quarantined(receipt.unit * 16 + 3, "hangs")
    for changes, words in (
        ({"quarantined": (lost,)}, "counts twice, or not at all"),
        ({"tokens": receipt.tokens[:-4] + bytes(4)}, "counts twice, or not at all"),
        ({"quarantined": (lost, lost)}, "twice"),
        ({"model": "0" * 64}, "other weights"),
        ({"outputs": ()}, "each file"),
        ({"outputs": (dataclasses.replace(receipt.outputs[0], path="plan.json"),)}, "no file of its unit"),
    ):
        before = (run / key).read_bytes()
        rewritten(run, key, Receipt, **changes)
        first = damages(run)[0]
        assert (first.key, str(first.unit)) == (key, "target unit 1")
        assert words in first.problem
        (run / key).write_bytes(before)


def test_what_card_and_folds_say_is_compared_with_the_receipts(copied):
    run = copied("sketched")
    key = "receipts/target/00000001.json"
    receipt = record.unseal(Receipt, (run / key).read_bytes())
    rewritten(run, key, Receipt, num_truncated=receipt.num_truncated + 1)
    (card,) = damages(run)
    assert "num_truncated of the target" in card.problem
    (run / key).write_bytes(record.seal(receipt))
    (fold,) = (path for path in (run / "folds/source").iterdir() if path.suffix == ".json")
    for changes in ({"contents": 7}, {"num_samples": 7}, {"units": b"\x01"}):
        before = fold.read_bytes()
        rewritten(run, fold.relative_to(run), Fold, **changes)
        assert damages(run)[0].key == fold.relative_to(run).as_posix()
        fold.write_bytes(before)


def test_a_run_that_is_not_done_is_no_damage_but_one_that_lost_a_receipt_is(copied):
    run = copied("exact")
    (run / "receipts/source/00000002.json").unlink()
    assert [damage.key for damage in damages(run)] == ["receipts/source/00000002.json"]
    shutil.rmtree(run / "steers")
    for name in ("CURRENT", "steer", "timings.json"):
        (run / name).unlink()
    seen = Seen()
    assert list(verify(LocalStorage(run), seen)) == []
    assert (seen.units, seen.counted) == (4, 60)
    for name in ("receipts", "frames", "activations.zarr", "sketches.zarr", "prompts"):
        shutil.rmtree(run / name)
    (run / "spec.yaml").unlink()
    assert damages(run) == []


def test_strangers_are_named_and_temporaries_counted(copied):
    run = copied("exact")
    strangers = ["activations.zarr/source/c/99/0", "notes.txt", "receipts/source/old.json", "steer.json"]
    for name in strangers:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    (run / "receipts" / ".00000001.json.7.abc.partial").write_text("half")
    seen = Seen()
    found = list(verify(LocalStorage(run), seen))
    assert sorted(damage.key for damage in found) == strangers
    assert {damage.kind for damage in found} == {"unknown"}
    assert seen.temporaries == 1


def test_a_run_whose_plan_is_gone_is_read_by_another_one(copied):
    run = copied("exact")
    plan = read_plan(LocalStorage(run))
    (run / "plan.json").write_bytes(b"\xff" * 100)
    (run / "CURRENT").write_text("x")
    assert [damage.kind for damage in verify(LocalStorage(run))] == ["plan"]
    assert [damage.kind for damage in verify(LocalStorage(run), plan=plan)] == ["plan", "steer"]


def test_a_steer_by_itself(finished, tmp_path):
    steer = Path(shutil.copytree(finished("exact") / "steer", tmp_path / "steer"))
    seen = Seen()
    assert list(verify_steer(steer, seen)) == []
    assert seen.files == 3
    for path in sorted(steer.iterdir()):
        for harm in (flip, *HARMS):
            with harmed(path, harm, random.Random(0), tmp_path / "outside"):
                assert path.name in [damage.key for damage in verify_steer(steer)]
