"""Verifying, repairing and replaying through the command line."""

import shutil
from pathlib import Path


def test_a_run_is_verified_repaired_and_verified_again(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    whole = actmap("verify", run, "--json")
    assert (whole.code, whole.err) == (0, "")
    assert whole.json["damages"] == []
    assert whole.json["prompts"] == {"counted": 68, "quarantined": 0, "removed": 0, "of": 68}
    assert "68 counted, 0 quarantined, 0 removed" in actmap("verify", run).out
    (run / "activations.zarr/source/c/2/0").write_bytes(b"torn")
    (run / "receipts/target/00000001.json").write_bytes(b"{}")
    found = actmap("verify", run, "--json")
    assert found.code == 74
    assert found.err.splitlines() == [
        f"actmap: {run}/activations.zarr/source/c/2/0 (source unit 2) is damaged: its bytes are not those that its "
        f"receipt speaks of, and 1 more file is; actmap fit SPEC --run {run} --repair, with its spec, computes again "
        "what is needed"
    ]
    assert [damage["file"] for damage in found.json["damages"]] == [
        "activations.zarr/source/c/2/0",
        "receipts/target/00000001.json",
    ]
    done = actmap("fit", fitted.parent / "spec.yaml", "--run", run, "--repair", "--wait", "1")
    assert done.code == 0, done.err
    assert "2 damaged units run again: source unit 2, target unit 1" in done.err
    assert actmap("verify", run).code == 0
    assert (run / "CURRENT").read_bytes() == (fitted / "CURRENT").read_bytes()


def test_a_steer_is_verified_and_replayed(actmap, fitted, tmp_path):
    steer = Path(shutil.copytree(fitted / "steer", tmp_path / "steer"))
    assert actmap("verify", steer, "--json").json["steer"] == str(steer)
    done = actmap("replay", steer, "--base", fitted.parent)
    assert done.code == 0, done.err
    assert "same bits" in done.out
    refused = actmap("replay", steer, "--base", tmp_path)
    assert refused.code == 2
    assert "no prompt file" in refused.err.splitlines()[-1]
    (steer / "README.md").write_text("mine")
    assert actmap("verify", steer).code == 74


def test_a_place_with_neither_a_run_nor_a_steer_is_refused(actmap, llama, tmp_path):
    for place in (llama, tmp_path / "none"):
        found = actmap("verify", place)
        assert found.code == 2
        assert f"neither a run nor a steer at {place}" in found.refusal
