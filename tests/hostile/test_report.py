"""Foreign text in the report: it is text there, wherever it came from."""

import dataclasses
import html
import re
from pathlib import Path

import pytest

from jobs.report.facts import gather
from jobs.report.write import render
from jobs.text import visible
from tests.hostile.strings import NASTY, acting
from tests.jobs.report.runs import BLOCKS, Page, make_plan, make_run


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return gather(make_run(tmp_path_factory.mktemp("report") / "run", make_plan(BLOCKS[:1]), {}), ())


@pytest.fixture(scope="module")
def plain(facts):
    """The page of a run without foreign text."""
    return render(facts)


def named(text):
    """A text as the name of a site, which has no line breaks."""
    return "a." + text.replace("\n", " ")


def test_foreign_text_in_the_report_is_text(facts, plain):
    texts = list(NASTY.values())
    card, plan = facts.steer.card, facts.plan
    (site,) = card.sites
    sites = tuple(dataclasses.replace(site, hookpoint=named(text), module_type=text) for text in texts)
    everywhere = " ".join(texts)
    steer = dataclasses.replace(facts.steer)
    object.__setattr__(steer, "card", dataclasses.replace(card, name=everywhere, sites=sites, select=everywhere))
    spec = plan.spec | {
        "name": everywhere,
        everywhere: [everywhere],
        "model": plan.spec["model"] | {"path": everywhere},
    }
    moved = [dataclasses.replace(neuron.moved, hookpoint=everywhere) for neuron in facts.neurons]
    neurons = tuple(dataclasses.replace(a, moved=b) for a, b in zip(facts.neurons, moved, strict=True))
    rows = tuple((text, (text,)) for text in texts)
    page = render(
        dataclasses.replace(
            facts, steer=steer, plan=dataclasses.replace(plan, spec=spec), sites=sites, neurons=neurons,
            texts=dataclasses.replace(facts.texts, strengths=(0.5,), rows=rows),
        )
    )  # fmt: skip
    found, before = Page(page), Page(plain)
    tables = {"table", "thead", "td", "th", "tr", "tbody"}
    assert {tag for tag, _ in found.tags} - {tag for tag, _ in before.tags} <= tables
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert not [
        value for _, attributes in found.tags for name, value in attributes.items()
        if name in {"href", "src", "xlink:href"} and not value.startswith("#")
    ]  # fmt: skip
    assert not acting(html.unescape(page))
    for text in texts:
        assert " ".join(visible(text).split()) in found.text


def test_the_report_offers_no_table_for_a_spreadsheet(plain):
    # A cell that starts with = + - @ would be a formula there. Whoever adds such a file tries it with NASTY.
    assert not re.search(r"\.csv|text/csv|\.tsv|\.xlsx|download", plain)
    assert not [path for path in Path("jobs").rglob("*.py") if re.search(r"import csv|\.writer\(", path.read_text())]
