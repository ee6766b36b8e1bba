import base64
import json
import shutil
from array import array
from pathlib import Path

from tests.jobs.runs import SOURCES, TARGETS

UNITS = 5 + 4


def test_a_finished_run(actmap, fitted):
    state = actmap("status", fitted, "--json").json
    assert (state["name"], state["state"], state["steer"]) == ("tiny", "done", str(fitted / "steer"))
    assert (state["units_done"], state["units"]) == (UNITS, UNITS)
    assert (state["sites_fitted"], state["sites"]) == (None, 5)
    assert state["prompts_done"] == state["prompts"] == len(SOURCES) + len(TARGETS)
    assert state["fingerprint"] == json.loads((fitted / "steer" / "steer.json").read_text())["plan"]
    receipts = [json.loads(path.read_text()) for path in fitted.glob("receipts/*/*.json")]
    assert state["tokens"] == sum(sum(array("I", base64.b64decode(receipt["tokens"]))) for receipt in receipts)
    assert state["truncated"] == sum(receipt["num_truncated"] for receipt in receipts)
    page = actmap("status", fitted)
    assert (page.code, page.err) == (0, "")
    assert "tiny: done" in page.out
    assert "9 of 9" in page.out


def test_a_run_under_way_counts_the_units_that_have_a_receipt(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run", symlinks=True))
    (run / "CURRENT").unlink()
    assert actmap("status", run, "--json").json["state"] == "fitting"
    (run / "receipts" / "target" / "00000003.json").unlink()
    (run / "receipts" / "source" / "00000000.json").unlink()
    state = actmap("status", run, "--json").json
    assert (state["state"], state["steer"]) == ("extracting", None)
    assert (state["units_done"], state["units"]) == (UNITS - 2, UNITS)
    assert state["prompts_done"] == len(SOURCES) + len(TARGETS) - 8 - 4
    assert "not yet" in actmap("status", run).out


def test_a_run_that_has_a_plan_alone(actmap, fitted, tmp_path):
    shutil.copy(fitted / "plan.json", tmp_path)
    state = actmap("status", tmp_path, "--json").json
    assert (state["state"], state["units_done"], state["units"]) == ("extracting", 0, UNITS)
    assert "0 of 68" in actmap("status", tmp_path).out


def test_looking_changes_nothing(actmap, fitted):
    before = {path: path.lstat().st_mtime_ns for path in fitted.rglob("*")}
    assert actmap("status", fitted).code == 0
    assert {path: path.lstat().st_mtime_ns for path in fitted.rglob("*")} == before
