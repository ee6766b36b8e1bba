import html
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from act.errors import SteerNotFoundError
from jobs.report import Generation, write_report
from jobs.report.facts import gather
from jobs.report.figures import heat_map
from jobs.report.grid import arrange
from jobs.report.laws import NUM_NEURONS, NUM_OF_ONE_SITE
from jobs.report.text import decimal, duration, elide, size, visible
from jobs.report.write import render
from pipeline.errors import DamagedRunError, RunNotFoundError, StoreError
from pipeline.fit import fit
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger, measure
from pipeline.store import ActivationStore
from schemas import files, record
from schemas.card import SiteCard
from schemas.plan import SIDES, Memory, ModelFacts, Numerics, Plan, SideFacts, SideName, Site, Unit
from schemas.receipt import Quarantined, Receipt
from schemas.timings import Timings

BLOCKS = [
    *(f"model.layers.{block}.{kind}" for block in range(3) for kind in ("input_layernorm", "post_attention_layernorm")),
    "model.norm",
]
STEPS = [f"unet.mid.{name}@{step}" for step in range(4) for name in ("norm1", "norm2")]

#: A site and neuron, and how far its target law lies from its source law, in standard deviations of the source.
Shifts = Mapping[tuple[str, int], float]
SHIFTS: Shifts = {(BLOCKS[2], 5): 20.0, (BLOCKS[2], 1): 14.0, (BLOCKS[2], 2): 10.0, (BLOCKS[6], 3): 6.0}

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ {{ 7*7 }} &amp; \x07\u202egnp.exe 👩‍🔬 مرحبا \' " \ud800'


def make_plan(sites: Sequence[str], prompts: tuple[int, int] = (40, 30), width: int = 8, **spec: object) -> Plan:
    """Returns a plan as the planner makes it; `spec` replaces sections of the job."""
    job = {
        "version": 1,
        "name": "music",
        "model": {"kind": "causal-lm", "path": "models/tiny", "dtype": "float32"},
        "source": {"path": "data.parquet", "column": "text", "where": {"topic": ["art", "no"]}, "limit": None},
        "target": {"path": "data.parquet", "column": "text", "where": {}, "limit": None},
        "hookpoints": "layernorms",
        "template": "plain",
        "pooling": "mean",
        "estimation": "simultaneous",
        "transport": {"method": "linear", "support": "observed"},
        "compute": {"workers": 2, "max_tokens": 64, "unit_size": 16, "batch_tokens": 4096},
    }
    return Plan(
        version=1,
        spec=job | spec,
        model=ModelFacts("causal-lm", "f" * 64, 134_515_008, 538_060_032),
        location="models/tiny",
        numerics=Numerics("cpu", "float32", 1, "sdpa", "AVX2", {"torch": "2.13.0"}),
        sites=tuple(Site(site, "RMSNorm", width) for site in sites),
        timesteps=(),
        source=SideFacts(prompts[0], "a" * 64),
        target=SideFacts(prompts[1], "b" * 64),
        rows_per_prompt=1,
        memory=Memory(0, 0, 0, 0),
        disk=0,
    )


def make_block(plan: Plan, unit: Unit, shifts: Shifts) -> np.ndarray:
    """Normal activations of many scales; on the target side shifted where `shifts` says, and a little elsewhere."""
    generator = np.random.default_rng([unit.side == "target", unit.index])
    scale = np.random.default_rng(0).uniform(0.1, 30, plan.width)
    block = generator.normal(size=(unit.num_prompts, plan.width))
    if unit.side == "target":
        block += np.random.default_rng(1).uniform(-0.3, 0.3, plan.width)
        for (site, neuron), shift in shifts.items():
            block[:, plan.columns[site].start + neuron] += shift
    return (block * scale).astype(np.float32)


def make_run(root: Path, plan: Plan, shifts: Shifts = SHIFTS, lost: Sequence[Quarantined] = ()) -> RunFolder:
    """Writes a finished run; the prompts in `lost` are quarantined in the first source unit."""
    folder = RunFolder(root)
    folder.make()
    files.publish(folder.plan, record.dump(plan))
    store, ledger = ActivationStore(folder.activations, plan), Ledger(folder, plan)
    store.create()
    receipts = []
    for unit in plan.units():
        block = make_block(plan, unit, shifts)
        gone = tuple(lost) if (unit.side, unit.index) == ("source", 0) else ()
        block[[one.row for one in gone]] = np.nan
        receipts.append(ledger.commit(unit, make_receipt(folder, plan, unit, (store.write(unit, block), gone))))
    fit(plan, store, receipts).save(folder.steer)
    return folder


def make_receipt(folder: RunFolder, plan: Plan, unit: Unit, written: tuple[Path, tuple[Quarantined, ...]]) -> Receipt:
    shard, gone = written
    lost = {one.row for one in gone}
    length, checksum = measure(shard)
    return Receipt(
        plan=plan.fingerprint,
        model="e" * 64,
        side=unit.side,
        unit=unit.index,
        num_prompts=unit.num_prompts,
        num_tokens=tuple(0 if row in lost else 10 for row in range(unit.num_prompts)),
        num_truncated=2 if unit.index == 0 else 0,
        quarantined=gone,
        shard=str(shard.relative_to(folder.root)),
        size=length,
        crc32c=checksum,
        seconds=1.0,
        compute_seconds=0.9,
        worker=100 + unit.index % 2,
        peak_memory=(700 + unit.index) << 20,
    )


class Page(HTMLParser):
    """The elements, attributes and visible text of a page; an element ends a word unless it is ``<wbr>``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.parts += [] if tag == "wbr" else [" "]

    def handle_endtag(self, tag):
        if tag == "style":
            self.parts.clear()
        self.parts.append(" ")

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    lost = [Quarantined(3, "empty: no tokens"), Quarantined(7, HOSTILE.replace("\ud800", ""))]
    folder = make_run(tmp_path_factory.mktemp("run") / "music", make_plan(BLOCKS), lost=lost)
    stages = {"plan": 1.5, "extract": 7.0, "fit": 0.5, "save": 0.25, "model": 2.0}
    files.publish(folder.timings, record.dump(Timings(stages, 2, 70)))
    return folder


def test_page_names_the_most_moved_neurons_in_order_and_at_most_two_of_a_site(run):
    facts = gather(run, ())
    found = [(neuron.moved.hookpoint, neuron.moved.neuron) for neuron in facts.neurons]
    assert found[:3] == [(BLOCKS[2], 5), (BLOCKS[2], 1), (BLOCKS[6], 3)]
    assert len(found) == NUM_NEURONS == len(set(found))
    sites = [site for site, _ in found]
    assert max(map(sites.count, sites)) == NUM_OF_ONE_SITE
    assert facts.neurons[0].moved.displacement == pytest.approx(20, rel=0.2)
    text = Page(render(facts)).text
    places = [text.index(f"{site} neuron {neuron} ·") for site, neuron in found]
    assert places == sorted(places)


def test_laws_are_shares_of_the_samples_and_the_transported_law_lies_on_the_target(run):
    plan = record.load(Plan, run.plan.read_bytes())
    neuron = gather(run, ()).neurons[0]
    column = slice(start := plan.columns[BLOCKS[2]].start + 5, start + 1)
    receipts, _ = Ledger(run, plan).split(plan.units())
    store = ActivationStore(run.activations, plan)
    laws = {"source": (neuron.source, neuron.means[0]), "target": (neuron.target, neuron.means[1])}
    for side in SIDES:
        law, mean = laws[side]
        samples = store.samples(side, column, [receipt for receipt in receipts if receipt.side == side])
        np.testing.assert_allclose(law, np.histogram(samples, neuron.edges)[0] / len(samples))
        assert mean == pytest.approx(samples.mean(), rel=1e-5)
        assert 0.9 < law.sum() <= 1
    assert neuron.means[2] == pytest.approx(neuron.means[1], rel=1e-4)
    assert neuron.means[0] != pytest.approx(neuron.means[1], rel=0.1)


def test_a_side_read_in_parts_ranks_the_same_neurons(tmp_path, monkeypatch):
    shifts = {(BLOCKS[0], 3): 20.0, (BLOCKS[0], 70): 14.0, (BLOCKS[0], 150): 10.0}
    folder = make_run(tmp_path / "run", make_plan(BLOCKS[:1], width=160), shifts)
    whole = [neuron.moved for neuron in gather(folder, ()).neurons]
    assert [moved.neuron for moved in whole] == [3, 70]
    monkeypatch.setattr("jobs.report.laws.READ_SIZE", 1)
    read: list[int] = []
    samples = ActivationStore.samples

    def watched(self: ActivationStore, side: SideName, columns: slice, receipts: Sequence[Receipt]) -> np.ndarray:
        read.append(columns.stop - columns.start)
        return samples(self, side, columns, receipts)

    monkeypatch.setattr(ActivationStore, "samples", watched)
    assert [neuron.moved for neuron in gather(folder, ()).neurons] == whole
    assert max(read) == 64


def test_a_neuron_without_spread_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "make_block", lambda plan, unit, shifts: np.ones((unit.num_prompts, 8), np.float32))
    folder = make_run(tmp_path / "run", make_plan(["norm"]))
    assert gather(folder, ()).neurons == ()
    assert "no laws to draw" in write_report(folder).read_text("utf-8")


def test_a_neuron_that_is_nearly_always_one_value_is_drawn_over_its_whole_range(tmp_path, monkeypatch):
    def spike(plan: Plan, unit: Unit, shifts: Shifts) -> np.ndarray:
        block = np.zeros((unit.num_prompts, plan.width), np.float32)
        block[0] = 5 if unit.side == "source" else -2
        return block

    monkeypatch.setitem(globals(), "make_block", spike)
    compute = {"workers": 0, "max_tokens": 64, "unit_size": 500, "batch_tokens": 4096}
    folder = make_run(tmp_path / "run", make_plan(["norm"], prompts=(500, 500), compute=compute))
    neuron = gather(folder, ()).neurons[0]
    assert neuron.edges[0] < -2 < 5 < neuron.edges[-1]
    assert neuron.source.sum() == pytest.approx(1)
    assert "of samples" in write_report(folder).read_text("utf-8")


@pytest.mark.parametrize("support", ["unbounded", [0, 0.1], [20, 80]])
def test_any_support_can_be_drawn(tmp_path, support):
    plan = make_plan(BLOCKS, transport={"method": "mean", "support": support})
    assert len(Page(write_report(make_run(tmp_path / "run", plan)).read_text("utf-8")).named("svg")) == NUM_NEURONS + 1


def test_page_shows_cost_prompts_and_timings(run):
    page = Page(write_report(run).read_text("utf-8"))
    for words in (
        "Prompts 70", "Tokens 680", "Wall time 11.2 s", "Prompts/s, extracting 10 Workers", "Workers 2",
        "Peak memory of a worker 702 MiB", "source 40 38 380 2 2", "target 30 30 300 2 0", "3 empty: no tokens",
    ):  # fmt: skip
        assert words in page.text, words
    bars = page.text[page.text.index("Wall time of each stage") : page.text.index("The spec")]
    assert re.findall(r"(plan|model|extract|fit|save) (\d+\.\d+) s", bars) == [
        ("plan", "1.5"), ("model", "2.0"), ("extract", "7.0"), ("fit", "0.50"), ("save", "0.25"),
    ]  # fmt: skip


def test_page_shows_every_site_with_its_numbers_and_the_fingerprints(run):
    facts = gather(run, ())
    page = Page(render(facts))
    for site in facts.steer.card.sites:
        row = f"{site.hookpoint} RMSNorm 8 {site.displacement:.3f} {100 * site.transported:.1f}"
        assert row in page.text
        assert f"{site.hookpoint}: {site.displacement:.3f} sd" in page.text
    card = facts.steer.card
    for print_ in (card.plan, card.tensors, card.model_fingerprint, card.checkpoint_fingerprint, "a" * 64, "b" * 64):
        assert print_ in page.text
    assert 'topic: [art, "no"]' in page.text


def test_page_without_timings_leaves_them_out(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", make_plan(BLOCKS))).read_text("utf-8"))
    assert "Wall time" not in page.text
    assert "Prompts/s" not in page.text
    assert "Workers 2" in page.text


def test_page_fetches_nothing_and_runs_nothing(run):
    page = Page(write_report(run, [Generation(HOSTILE, 0.0, HOSTILE)]).read_text("utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert not re.search(r"url\((?!#)", value), (tag, name)
            if name in {"src", "href"}:
                assert value.startswith("#"), (tag, name)
    assert "default-src 'none'" in page.named("meta")[1]["content"]
    assert not re.search(r"url\(|@import|https?:", page_style(run))


def page_style(run: RunFolder) -> str:
    page = run.report.read_text("utf-8")
    return page[page.index("<style>") : page.index("</style>")]


def test_hostile_names_and_texts_are_shown_as_they_are_spelled(tmp_path):
    sites = ["model.<b>$x_1$</b>&amp;.norm", "model.👩‍🔬 مرحبا.norm"]
    plan = make_plan(sites, name=HOSTILE.replace("\ud800", ""), hookpoints=["<i>", "$a$\u202e"])
    folder = make_run(tmp_path / "run", plan, {})
    stages = {"extract": 1.0, "</text><script>": 2.0, "$\\alpha$ \u202e": 3.0}
    files.publish(folder.timings, record.dump(Timings(stages, 0, 70)))
    written = write_report(folder, [Generation(HOSTILE, 0.5, HOSTILE)]).read_text("utf-8")
    page = Page(written)
    shown = " ".join(visible(HOSTILE).split())
    assert page.text.count(shown.removesuffix(" \\ud800")) >= 3  # heading, prompt and text
    assert "\\u0007\\u202egnp.exe 👩‍🔬 مرحبا" in shown
    assert not {tag for tag, _ in page.tags} & {"script", "i>", "alert"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html.unescape(written))
    for words in ("<b>$x_1$</b>&amp;.norm", "</text><script> 2.0 s", "$\\alpha$ \\u202e 3.0 s", "👩‍🔬 مرحبا.norm"):
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


def test_every_reference_inside_a_figure_leads_to_one_element(run):
    page = Page(write_report(run).read_text("utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(page.named("svg")) == NUM_NEURONS + 2
    wanted = {value for _, a in page.tags for value in re.findall(r"url\(#([^)]+)\)", " ".join(a.values()))}
    wanted |= {a["href"].removeprefix("#") for _, a in page.tags if "href" in a}
    assert wanted == set(ids)


def test_colours_of_figures_follow_the_theme(run):
    page = Page(write_report(run).read_text("utf-8"))
    inside = [a["style"] for tag, a in page.tags if tag in {"path", "text", "use"} and "style" in a]
    used = set(re.findall(r"#[0-9a-f]{6}|var\(--[a-z-]+\)", " ".join(inside)))
    assert {"var(--accent)", "var(--text)", "var(--muted)"} <= used
    assert not {colour for colour in used if colour.startswith("#")}
    assert set(re.findall(r"var\((--[a-z-]+)\)", " ".join(inside))) <= set(re.findall(r"(--[a-z-]+):", page_style(run)))


def test_the_same_run_gives_the_same_bytes(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


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


def cards(names: Sequence[str]) -> list[SiteCard]:
    return [SiteCard(name, "Norm", 4, float(number), 1.0) for number, name in enumerate(names)]


def test_sites_of_blocks_stand_by_kind_and_block():
    grid = arrange(cards(["model.embed", *BLOCKS]))
    assert grid.rows == ("embed", "input_layernorm", "post_attention_layernorm", "norm")
    assert grid.columns == ("start", "0", "1", "2", "end")
    assert grid.axis == "block"
    places = {cell.hookpoint: (cell.row, cell.column, cell.displacement) for cell in grid.cells}
    assert places["model.layers.1.post_attention_layernorm"] == (2, 2, 4.0)
    assert places["model.embed"] == (0, 0, 0.0)
    assert places["model.norm"] == (3, 4, 7.0)
    assert grid.highest == 7.0


@pytest.mark.parametrize(
    ("names", "rows", "columns"),
    [
        (["model.layers.0", "model.layers.10", "model.layers.2"], ("layers.*",), ("0", "2", "10")),
        (["0", "2"], ("*",), ("0", "2")),
        (["h.0.ln:1", "h.1.ln:1"], ("ln:1",), ("0", "1")),
        (["net.first", "net.second.norm"], ("first", "second.norm"), ("displacement",)),
        (["a.0.b.0.n", "a.0.b.1.n"], ("b.0.n", "b.1.n"), ("0",)),
        (["enc.0.n", "dec.0.n"], ("enc.*.n", "dec.*.n"), ("0",)),
        (STEPS, ("norm1", "norm2"), ("0", "1", "2", "3")),
    ],
)
def test_rows_and_columns_come_from_names(names, rows, columns):
    grid = arrange(cards(names))
    assert (grid.rows, grid.columns) == (rows, columns)
    assert len({(cell.row, cell.column) for cell in grid.cells}) == len(names)


def test_only_the_farthest_moved_of_many_sites_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.report.facts.MOST_SITES", 2)
    sites = ["a.norm", "b.norm", "c.norm", "d.norm"]
    folder = make_run(tmp_path / "run", make_plan(sites), {("d.norm", 0): 90.0, ("b.norm", 0): 60.0})
    assert [site.hookpoint for site in gather(folder, ()).sites] == ["b.norm", "d.norm"]
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "The farthest moved 2 sites in numbers" in text
    assert "The other 2 sites" in text
    assert "a.norm RMSNorm" not in text


def test_a_large_heat_map_is_one_small_image():
    grid = arrange(cards([f"unet.blocks.{block}.norm@{step}" for step in range(30) for block in range(200)]))
    figure = str(heat_map(grid))
    (image,) = Page(figure).named("image")
    assert image["href"].startswith("data:image/png;base64,")
    assert len(figure) < 100_000


def test_numbers_are_worded_for_people():
    assert [size(n) for n in (0, 1023, 1024, 5 << 20, 900 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "900 MiB", "3.0 TiB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.0312, 9.96, 119.94, 120, 3725)] == [
        "0.03 s", "10.0 s", "119.9 s", "2 min 00 s", "1 h 02 min",
    ]  # fmt: skip
    assert [decimal(x) for x in (0.0, -1.23456, float("-inf"))] == ["0", "−1.235", "−∞"]
    assert elide("abcdefghij", 5) == "ab…ij"
    assert elide("abcde", 5) == "abcde"


def test_torch_is_left_as_it_was(run):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    write_report(run)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
