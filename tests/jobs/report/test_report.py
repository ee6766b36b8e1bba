"""The page of finished runs: what it shows, and that nothing in it is fetched, run or hidden."""

import hashlib
import re
from typing import Any

import pytest
import torch

from jobs.report import Generation, write_report
from jobs.report.facts import Facts, gather
from jobs.report.laws import NUM_NEURONS
from jobs.report.write import render
from jobs.text import size
from pipeline.folder import TIMINGS
from pipeline.ledger import Ledger
from pipeline.storage import LocalStorage
from schemas import record
from schemas.receipt import Quarantined
from schemas.timings import Timings
from tests.jobs.report.runs import BLOCKS, HOSTILE, SKETCHED, Page, laws_of, make_plan, make_run

GENERATIONS = [
    Generation("Once", 1.0, "more music"),
    Generation("Once", 0.0, "a city"),
    Generation("Twice", 0.0, "two\nlines"),
    Generation(HOSTILE, 0.0, HOSTILE),
]

#: Seconds of each stage, not in order.
STAGES = {"fit": 0.5, "reduce": 0.75, "plan": 1.5, "extract": 7.0, "frames": 0.25, "save": 0.25, "model": 2.0}

#: A run whose activations are stored, and one that keeps none and knows its laws from sketches.
TOKENS = {"transport": {"method": "quantile", "support": "tokens"}}
KINDS: dict[str, dict[str, Any]] = {"exact": {}, "sketch": SKETCHED | TOKENS}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory) -> LocalStorage:
    lost = [Quarantined(3, "empty: no tokens"), Quarantined(7, HOSTILE.replace("\ud800", ""))]
    folder = make_run(tmp_path_factory.mktemp("run") / "music", make_plan(BLOCKS, **KINDS[request.param]), lost=lost)
    folder.write(TIMINGS, record.seal(Timings(STAGES, 2, 70)))
    return folder


@pytest.fixture(scope="module")
def facts(run) -> Facts:
    return gather(run, GENERATIONS)


@pytest.fixture(scope="module")
def written(facts) -> str:
    return render(facts)


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written)


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
        errors = (f"{error:#.2g}" for error in (site.error_median, site.error_worst))
        numbers = ["100.0", f"{site.displacement:.3f}", *(f"{share:.1f}" for share in shares), *errors]
        assert f"{site.hookpoint} RMSNorm 8 {' '.join(numbers)}".replace("e-0", "e−") in page.text
        assert f"{site.hookpoint}: {site.displacement:.3f} sd" in page.text
        assert f"{site.hookpoint}: median {site.error_median:#.2g} sd, ".replace("e-0", "e−") in page.text
    for print_ in (card.plan, card.tensors, card.model_fingerprint, card.checkpoint_fingerprint, "a" * 64, "b" * 64):
        assert print_ in page.text
    assert 'topic: [art, "no"]' in page.text


def test_page_says_how_the_laws_were_made_and_what_was_kept(run, facts, page):
    plan, _ = laws_of(run)
    outputs = [one for receipt in Ledger(run, plan).receipts() for one in receipt.outputs]
    kept = sum(one.size for one in outputs if one.kind == "activations")
    sketches = sum(run.size(one.path) for one in outputs if one.kind != "activations")
    assert f"Activations kept {size(kept) if kept else 'none'} Sketches kept {size(sketches)}" in page.text
    if not plan.sketched:
        assert "Laws exact: every sample is kept" in page.text
        assert kept
    else:
        assert "Laws sketches with 2⁵ = 32 buckets an octave" in page.text
        assert not kept
    assert f"Method {facts.steer.card.method}, support {facts.steer.card.support}, simultaneous" in page.text
    assert "Moved all neurons" in page.text


def test_page_says_what_the_bound_is_and_draws_it(facts, page):
    assert "anywhere on their support that the source's samples reach. This is proven, not estimated" in page.text
    exact = not facts.plan.sketched
    assert ("what is left is the rounding of float32" in page.text) == exact
    assert ("a finer sketch, by law.precision , has a smaller bound" in page.text) == (not exact)
    labels = [figure["aria-label"] for figure in page.named("svg")]
    assert labels.count("Proven error of each site's maps, in standard deviations") == 1


def test_page_fetches_nothing_and_runs_nothing(page, written):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert not re.search(r"url\((?!#)", value), (tag, name)
            if name in {"src", "href"}:
                assert value.startswith("#"), (tag, name)
    assert "default-src 'none'" in page.named("meta")[1]["content"]
    assert not re.search(r"url\(|@import|https?:", style_of(written))


def style_of(written: str) -> str:
    return written[written.index("<style>") : written.index("</style>")]


def test_every_reference_inside_a_figure_leads_to_one_element(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(page.named("svg")) == NUM_NEURONS + 3
    wanted = {value for _, a in page.tags for value in re.findall(r"url\(#([^)]+)\)", " ".join(a.values()))}
    wanted |= {a["href"].removeprefix("#") for _, a in page.tags if "href" in a}
    assert wanted == set(ids)


def test_colours_of_figures_follow_the_theme(page, written):
    inside = [a["style"] for tag, a in page.tags if tag in {"path", "text", "use"} and "style" in a]
    used = set(re.findall(r"#[0-9a-f]{6}|var\(--[a-z-]+\)", " ".join(inside)))
    assert {"var(--accent)", "var(--text)", "var(--muted)"} <= used
    assert not {colour for colour in used if colour.startswith("#")}
    named = set(re.findall(r"(--[a-z-]+):", style_of(written)))
    assert set(re.findall(r"var\((--[a-z-]+)\)", " ".join(inside))) <= named


def test_the_same_run_gives_the_same_bytes_and_leaves_torch_as_it_was(run, written):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert write_report(run.uri, GENERATIONS) == run.place("report.html")
    assert run.read("report.html") == written.encode()
    assert run.read("report.html.sha256") == f"{hashlib.sha256(written.encode()).hexdigest()}  report.html\n".encode()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_page_stays_small(written):
    assert len(written) < 300_000


def test_generations_stand_by_prompt_and_strength(page):
    assert "Prompt strength 0 strength 1 Once a city more music Twice two lines –" in page.text
