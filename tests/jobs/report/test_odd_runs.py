"""Reports of runs that are odd: of every method, hostile, misfitting, damaged, or with nothing to show."""

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act.errors import SteerNotFoundError
from act.transport.affine import LARGEST
from jobs.report import Generation, write_report
from jobs.report.facts import gather
from jobs.report.write import render
from jobs.text import visible
from pipeline.errors import DamagedRunError, RunNotFoundError, StoreError
from pipeline.folder import RunFolder
from pipeline.plan import read_plan
from pipeline.storage import LocalStorage
from schemas import record
from schemas.plan import Plan, Unit
from schemas.timings import Timings
from tests.jobs.report.runs import BLOCKS, HOSTILE, SKETCHED, Block, Page, Shifts, make_plan, make_run


def page_of(folder: LocalStorage) -> Page:
    """The report of a run, written and read back."""
    return Page(Path(write_report(folder.root)).read_text("utf-8"))


@pytest.mark.parametrize("kind", [{}, pytest.param(SKETCHED, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "transport",
    [
        {"method": "mean", "support": "unbounded"},
        {"method": "linear", "support": [0, 0.1]},
        {"method": "quantile", "support": [20, 80]},
        {"method": "det-zero", "support": "tokens", "threshold": 0.25},
    ],
)
def test_any_method_and_support_can_be_drawn(tmp_path, transport, kind):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[2:4], transport=transport, **kind), {(BLOCKS[2], 5): 20.0})
    page = page_of(folder)
    drawn = len(gather(folder, ()).neurons)
    assert 1 <= drawn <= 4
    assert len(page.named("svg")) == drawn + 2
    assert f"Method {transport['method']}, support" in page.text
    assert ("threshold 0.25" in page.text) == (transport["method"] == "det-zero")


def test_page_says_which_neurons_were_selected(tmp_path):
    chosen = {"by": "w2", "top": 2, "of": "neurons", "across": "site"}
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1], transport={"select": chosen}), {})
    page = page_of(folder)
    assert "Moved top 2 neurons of each site by w2" in page.text
    assert f"{BLOCKS[0]} RMSNorm 8 25.0 " in page.text
    assert "A site without a dot leaves half of its neurons, or more, as they are." in page.text


def test_page_counts_misfits_where_there_are_some(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[2:3], **SKETCHED), {})
    facts = gather(folder, ())
    assert "isfits" not in render(facts)
    (site,) = facts.steer.card.sites
    worse = replace(site, misfit=3, error_worst=LARGEST)
    card = replace(facts.steer.card, sites=(worse,))
    page = Page(render(replace(facts, steer=replace(facts.steer, card=card), sites=(worse,))))
    assert "Error, worst, sd Misfits " in page.text
    assert re.search(rf"{re.escape(site.hookpoint)} RMSNorm 8 .* none 3 ", page.text)
    assert "Misfits are neurons whose sketch had a frame that did not fit" in page.text
    assert "▲ a neuron without a bound" in page.text


def test_page_without_timings_leaves_them_out(tmp_path):
    page = page_of(make_run(tmp_path / "run", make_plan(BLOCKS[:1]), {}))
    assert "Wall time" not in page.text
    assert "Prompts/s" not in page.text
    assert "What the model writes" not in page.text
    assert "Workers 2" in page.text


@pytest.mark.parametrize("kind", [{}, SKETCHED])
def test_hostile_names_and_texts_are_shown_as_they_are_spelled(tmp_path, kind):
    sites = ["model.<b>$x_1$</b>&amp;.norm", "model.👩‍🔬 مرحبا.norm"]
    plan = make_plan(sites, name=HOSTILE.replace("\ud800", ""), hookpoints=["<i>", "$a$\u202e"], **kind)
    folder = make_run(tmp_path / "run", plan, {})
    stages = {"extract": 1.0, "</text><script>": 2.0, "$\\alpha$ \u202e": 3.0}
    folder.write("timings.json", record.seal(Timings(stages, 0, 70)))
    write_report(folder.root, [Generation(HOSTILE, 0.5, HOSTILE)])
    written = folder.read("report.html").decode()
    page = Page(written)
    shown = " ".join(visible(HOSTILE).split())
    assert page.text.count(shown.removesuffix(" \\ud800")) >= 3  # heading, prompt and text
    assert "\\x07\\u202egnp.exe 👩‍🔬 مرحبا" in shown
    assert not {tag for tag, _ in page.tags} & {"script", "i>", "alert"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html.unescape(written))
    for words in (
        "<b>$x_1$</b>&amp;.norm", "</text><script> 2.0 s", "$\\alpha$ \\u202e 3.0 s", "👩‍🔬 مرحبا.norm",
        "model.<b>$x_1$</b>&amp;.norm: median",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.named("title")[0] == {}
    assert "Workers in process" in page.text


def test_a_run_without_spread_has_no_laws_and_no_bounds_to_draw(tmp_path):
    def ones(plan: Plan, unit: Unit, shifts: Shifts) -> Block:
        return np.ones((unit.num_prompts, plan.width), np.float32)

    page = page_of(make_run(tmp_path / "run", make_plan(["norm"]), make_block=ones))
    assert "no laws to draw" in page.text
    assert "There is nothing to draw" in page.text
    assert len(page.named("svg")) == 1


def test_a_run_that_is_not_there_or_not_whole_is_refused(tmp_path):
    with pytest.raises(RunNotFoundError):
        write_report(tmp_path / "none")
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1]), {})
    folder.write("timings.json", b"{}")
    with pytest.raises(DamagedRunError, match=r"timings\.json"):
        write_report(folder.root)
    folder.delete("timings.json")
    receipt = RunFolder(folder).receipt(next(read_plan(folder).units()))
    kept = folder.read(receipt)
    folder.delete(receipt)
    with pytest.raises(DamagedRunError, match="1 are missing"):
        write_report(folder.root)
    folder.write(receipt, kept)
    (folder.root / "steer/steer.json").unlink()
    with pytest.raises(DamagedRunError, match=r"steers/.*--repair"):
        write_report(folder.root)
    folder.delete("CURRENT")
    with pytest.raises(SteerNotFoundError):
        write_report(folder.root)
    assert not folder.exists("report.html")


def test_a_flipped_byte_of_a_sketch_is_found_and_nothing_is_written(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1], **SKETCHED), {})
    shard = folder.keys("sketches.zarr/source/c")[0]
    damaged = bytearray(folder.read(shard))
    damaged[len(damaged) // 3] ^= 1
    folder.write(shard, bytes(damaged))
    with pytest.raises(DamagedRunError, match="source"):
        write_report(folder.root)
    assert not folder.exists("report.html")


def test_the_steer_of_another_plan_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1]), {})
    folder.write("plan.json", record.seal(make_plan(BLOCKS[:1], pooling="max")))
    with pytest.raises(DamagedRunError, match="another plan"):
        write_report(folder.root)


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1]), {})
    (folder.root / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"report\.html"):
        write_report(folder.root)


def test_only_the_farthest_moved_of_many_sites_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.report.facts.MOST_SITES", 2)
    sites = ["a.norm", "b.norm", "c.norm", "d.norm"]
    folder = make_run(tmp_path / "run", make_plan(sites), {("d.norm", 0): 90.0, ("b.norm", 0): 60.0})
    assert [site.hookpoint for site in gather(folder, ()).sites] == ["b.norm", "d.norm"]
    text = page_of(folder).text
    assert "The farthest moved 2 sites in numbers" in text
    assert "The other 2 sites" in text
    assert "a.norm RMSNorm" not in text
