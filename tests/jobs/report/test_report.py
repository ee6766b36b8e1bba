"""The page of runs of every kind: what it shows, and that nothing in it is fetched, run or hidden."""

import html
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from act.errors import SteerNotFoundError
from act.transport.affine import LARGEST
from jobs.report import Generation, write_report
from jobs.report.facts import Facts, gather
from jobs.report.laws import NUM_NEURONS
from jobs.report.write import render
from jobs.text import size, visible
from pipeline.errors import DamagedRunError, RunNotFoundError, StoreError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from schemas import files, record
from schemas.plan import Plan
from schemas.receipt import Quarantined
from schemas.timings import Timings
from tests.jobs.report.runs import BLOCKS, SKETCHED, Page, laws_of, make_plan, make_run

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ {{ 7*7 }} &amp; \x07\u202egnp.exe 👩‍🔬 مرحبا \' " \ud800'

#: Seconds of each stage, not in order.
STAGES = {"fit": 0.5, "reduce": 0.75, "plan": 1.5, "extract": 7.0, "frames": 0.25, "save": 0.25, "model": 2.0}

TOKENS = {"transport": {"method": "quantile", "support": "tokens"}}
KINDS: dict[str, dict[str, Any]] = {"exact": {}, "sketch": SKETCHED, "sketch quantile": SKETCHED | TOKENS}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory) -> RunFolder:
    lost = [Quarantined(3, "empty: no tokens"), Quarantined(7, HOSTILE.replace("\ud800", ""))]
    folder = make_run(tmp_path_factory.mktemp("run") / "music", make_plan(BLOCKS, **KINDS[request.param]), lost=lost)
    files.publish(folder.timings, record.dump(Timings(STAGES, 2, 70)))
    return folder


@pytest.fixture(scope="module")
def facts(run) -> Facts:
    return gather(run, [Generation(HOSTILE, 0.0, HOSTILE)])


@pytest.fixture(scope="module")
def page(facts) -> Page:
    return Page(render(facts))


def test_page_shows_cost_prompts_and_timings(page):
    for words in (
        "Prompts 70", "Tokens 680", "Wall time 12.2 s", "Prompts/s, extracting 10 Workers", "Workers 2",
        "Peak memory of a worker 702 MiB", "source 40 38 380 2 2", "target 30 30 300 2 0", "3 empty: no tokens",
    ):  # fmt: skip
        assert words in page.text, words
    bars = page.text[page.text.index("Wall time of each stage") : page.text.index("The spec")]
    assert re.findall(r"(plan|model|frames|extract|reduce|fit|save) (\d+\.\d+) s", bars) == [
        ("plan", "1.5"), ("model", "2.0"), ("frames", "0.25"), ("extract", "7.0"), ("reduce", "0.75"), ("fit", "0.50"),
        ("save", "0.25"),
    ]  # fmt: skip


def test_page_names_the_most_moved_neurons_in_order(facts, page):
    places = [
        page.text.index(f"{one.moved.hookpoint} neuron {one.moved.neuron} · moved {one.moved.displacement:.2f} sd")
        for one in facts.neurons
    ]
    assert places == sorted(places)
    assert len(places) == NUM_NEURONS


def test_page_shows_every_site_with_its_numbers_and_the_fingerprints(facts, page):
    card = facts.steer.card
    for site in card.sites:
        shares = (100 * share for share in (site.transported, site.tokens_transported))
        errors = (f"{error:.2g}" for error in (site.error_median, site.error_worst))
        numbers = ["100.0", f"{site.displacement:.3f}", *(f"{share:.1f}" for share in shares), *errors]
        assert f"{site.hookpoint} RMSNorm 8 {' '.join(numbers)}".replace("e-0", "e−") in page.text
        assert f"{site.hookpoint}: {site.displacement:.3f} sd" in page.text
        assert f"{site.hookpoint}: median {site.error_median:.2g} sd, ".replace("e-0", "e−") in page.text
    for print_ in (card.plan, card.tensors, card.model_fingerprint, card.checkpoint_fingerprint, "a" * 64, "b" * 64):
        assert print_ in page.text
    assert 'topic: [art, "no"]' in page.text


def test_page_says_how_the_laws_were_made_and_what_was_kept(run, facts, page):
    plan, _ = laws_of(run)
    outputs = [one for receipt in Ledger(run, plan).split(plan.units())[0] for one in receipt.outputs]
    kept = sum(one.size for one in outputs if one.kind == "activations")
    sketches = sum((run.root / one.path).stat().st_size for one in outputs if one.kind != "activations")
    assert f"Activations kept {size(kept) if kept else 'none'} Sketches kept {size(sketches)}" in page.text
    if plan.law.kind == "exact":
        assert "Laws exact: every sample is kept" in page.text
        assert kept
    else:
        assert "Laws sketches with 2⁵ = 32 buckets an octave" in page.text
        assert not kept
    assert f"Method {facts.steer.card.method}, support {facts.steer.card.support}, simultaneous" in page.text
    assert "Moved all neurons" in page.text


def test_page_says_what_the_bound_is_and_draws_it(facts, page):
    assert "anywhere on their support that the source's samples reach. This is proven, not estimated" in page.text
    exact = facts.plan.law.kind == "exact"
    assert ("what is left is the rounding of float32" in page.text) == exact
    assert ("a finer sketch, by law.precision , has a smaller bound" in page.text) == (not exact)
    labels = [figure["aria-label"] for figure in page.named("svg")]
    assert labels.count("Proven error of each site's maps, in standard deviations") == 1


def test_page_fetches_nothing_and_runs_nothing(page, facts):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert not re.search(r"url\((?!#)", value), (tag, name)
            if name in {"src", "href"}:
                assert value.startswith("#"), (tag, name)
    assert "default-src 'none'" in page.named("meta")[1]["content"]
    assert not re.search(r"url\(|@import|https?:", style_of(render(facts)))


def style_of(written: str) -> str:
    return written[written.index("<style>") : written.index("</style>")]


def test_every_reference_inside_a_figure_leads_to_one_element(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(page.named("svg")) == NUM_NEURONS + 3
    wanted = {value for _, a in page.tags for value in re.findall(r"url\(#([^)]+)\)", " ".join(a.values()))}
    wanted |= {a["href"].removeprefix("#") for _, a in page.tags if "href" in a}
    assert wanted == set(ids)


def test_colours_of_figures_follow_the_theme(page, facts):
    inside = [a["style"] for tag, a in page.tags if tag in {"path", "text", "use"} and "style" in a]
    used = set(re.findall(r"#[0-9a-f]{6}|var\(--[a-z-]+\)", " ".join(inside)))
    assert {"var(--accent)", "var(--text)", "var(--muted)"} <= used
    assert not {colour for colour in used if colour.startswith("#")}
    named = set(re.findall(r"(--[a-z-]+):", style_of(render(facts))))
    assert set(re.findall(r"var\((--[a-z-]+)\)", " ".join(inside))) <= named


def test_the_same_run_gives_the_same_bytes_and_leaves_torch_as_it_was(run):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_page_stays_small(facts):
    assert len(render(facts)) < 300_000


@pytest.mark.parametrize("kind", [{}, SKETCHED])
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
    page = Page(write_report(folder).read_text("utf-8"))
    drawn = len(gather(folder, ()).neurons)
    assert 1 <= drawn <= 4
    assert len(page.named("svg")) == drawn + 2
    assert f"Method {transport['method']}, support" in page.text
    assert ("threshold 0.25" in page.text) == (transport["method"] == "det-zero")


def test_page_says_which_neurons_were_selected(tmp_path):
    chosen = {"by": "w2", "top": 2, "of": "neurons", "across": "site"}
    folder = make_run(tmp_path / "run", make_plan(BLOCKS, transport={"select": chosen}))
    page = Page(write_report(folder).read_text("utf-8"))
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
    page = Page(write_report(make_run(tmp_path / "run", make_plan(BLOCKS))).read_text("utf-8"))
    assert "Wall time" not in page.text
    assert "Prompts/s" not in page.text
    assert "Workers 2" in page.text


@pytest.mark.parametrize("kind", [{}, SKETCHED])
def test_hostile_names_and_texts_are_shown_as_they_are_spelled(tmp_path, kind):
    sites = ["model.<b>$x_1$</b>&amp;.norm", "model.👩‍🔬 مرحبا.norm"]
    plan = make_plan(sites, name=HOSTILE.replace("\ud800", ""), hookpoints=["<i>", "$a$\u202e"], **kind)
    folder = make_run(tmp_path / "run", plan, {})
    stages = {"extract": 1.0, "</text><script>": 2.0, "$\\alpha$ \u202e": 3.0}
    files.publish(folder.timings, record.dump(Timings(stages, 0, 70)))
    written = write_report(folder, [Generation(HOSTILE, 0.5, HOSTILE)]).read_text("utf-8")
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


def test_generations_stand_by_prompt_and_strength(run):
    generations = [
        Generation("Once", 1.0, "more music"),
        Generation("Once", 0.0, "a city"),
        Generation("Twice", 0.0, "two\nlines"),
    ]
    page = Page(write_report(run, generations).read_text("utf-8"))
    assert "Prompt strength 0 strength 1 Once a city more music Twice two lines –" in page.text
    assert "What the model writes" not in Page(write_report(run).read_text("utf-8")).text


def test_a_run_where_nothing_moves_has_no_laws_and_no_bounds_to_draw(tmp_path, monkeypatch):
    plan = make_plan(["norm"], transport={"method": "det-zero", "support": "unbounded", "threshold": 0.999})
    page = Page(write_report(make_run(tmp_path / "run", plan, {})).read_text("utf-8"))
    assert "no laws to draw" in page.text
    assert "There is nothing to draw" in page.text
    assert len(page.named("svg")) == 1


def test_a_run_that_is_not_there_or_not_whole_is_refused(tmp_path):
    with pytest.raises(RunNotFoundError):
        write_report(RunFolder(tmp_path / "none"))
    folder = make_run(tmp_path / "run", make_plan(BLOCKS))
    plan = record.load(Plan, folder.plan.read_bytes())
    files.publish(folder.timings, b"{}")
    with pytest.raises(DamagedRunError, match=r"timings\.json"):
        write_report(folder)
    folder.timings.unlink()
    receipt = folder.receipt(next(plan.units()))
    kept = receipt.read_bytes()
    receipt.unlink()
    with pytest.raises(DamagedRunError, match="1 are missing"):
        write_report(folder)
    receipt.write_bytes(kept)
    (folder.steer / "steer.json").unlink()
    with pytest.raises(SteerNotFoundError):
        write_report(folder)
    assert not folder.report.exists()


def test_a_flipped_byte_of_a_sketch_is_found_and_nothing_is_written(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS, **SKETCHED))
    shard = next(path for path in (folder.sketches / "units/source/c").rglob("0") if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shard.write_bytes(bytes(damaged))
    with pytest.raises(DamagedRunError, match="source"):
        write_report(folder)
    assert not folder.report.exists()


def test_the_steer_of_another_plan_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS))
    files.publish(folder.plan, record.dump(make_plan(BLOCKS, pooling="max")))
    with pytest.raises(DamagedRunError, match="another plan"):
        write_report(folder)


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path):
    folder = make_run(tmp_path / "run", make_plan(BLOCKS))
    folder.report.mkdir()
    with pytest.raises(StoreError, match=r"report\.html"):
        write_report(folder)


def test_only_the_farthest_moved_of_many_sites_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.report.facts.MOST_SITES", 2)
    sites = ["a.norm", "b.norm", "c.norm", "d.norm"]
    folder = make_run(tmp_path / "run", make_plan(sites), {("d.norm", 0): 90.0, ("b.norm", 0): 60.0})
    assert [site.hookpoint for site in gather(folder, ()).sites] == ["b.norm", "d.norm"]
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "The farthest moved 2 sites in numbers" in text
    assert "The other 2 sites" in text
    assert "a.norm RMSNorm" not in text
