"""Replaying steers: the same bits from the card alone, or a sentence that says why not."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import act
from act.steer import Steer
from act.transport.affine import TransportMap
from jobs.fit import fit
from jobs.replay import compare, replay
from pipeline.errors import OtherSteerError, ReplayError
from pipeline.ledger import Ledger
from pipeline.pieces import Pieces
from pipeline.plan import make_plan, settle
from pipeline.quarantine import RunRecords
from pipeline.storage import LocalStorage
from schemas.job import read_job
from schemas.receipt import Quarantined, Split
from tests.jobs.runs import SOURCES, write_spec
from tests.models import tiny_llama

LOST, SPLIT = Quarantined(9, "kills its worker"), Split(0, 2)
CHANGES = {"failures": {"quarantine_at_most": 0.1}, "hookpoints": "model.layers.0", "target": {"limit": 12}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def fitted(llama, tmp_path_factory):
    """A folder with a spec, its prompts, and the run of it, which lost a prompt and split a micro-batch."""
    folder = tmp_path_factory.mktemp("fitted")
    spec = write_spec(folder, {"kind": "causal-lm", "path": str(llama)}, law={"kind": "sketch"}, **CHANGES)
    storage, plan = LocalStorage(folder / "run"), make_plan(read_job(spec), folder, folder / "cache")[0]
    settle(plan, storage)
    RunRecords(storage, plan).remember(plan.unit("source", 1), (LOST,))
    Pieces(storage).remember(plan.unit("target", 0), (SPLIT,))
    card = fit(spec, folder / "run", folder / "cache").steer.card
    assert card.source.quarantined == (LOST,)
    assert [(one.unit, one.batch, one.parts) for one in card.target.splits] == [(0, 0, 2)]
    return folder


def test_the_same_bits_come_from_the_card_alone_and_units_run_as_they_did(fitted, tmp_path):
    steer = Path(shutil.copytree(fitted / "run" / "steer", tmp_path / "steer"))
    done = replay(steer, fitted, str(tmp_path / "again"), tmp_path / "cache")
    assert done.tensors == act.load(steer).card.tensors
    assert done.prompts == len(SOURCES) + 12
    again = LocalStorage(tmp_path / "again")
    plan = make_plan(read_job(fitted / "spec.yaml"), fitted, tmp_path / "cache")[0]
    receipts = {(one.side, one.unit): one for one in Ledger(again, plan).receipts()}
    assert receipts["source", 1].quarantined == (LOST,)
    assert receipts["target", 0].splits == (SPLIT,)
    with pytest.raises(ReplayError, match="finished run"):
        replay(steer, fitted, str(tmp_path / "again"), tmp_path / "cache")


def changed(steer, folder, **changes):
    """Saves a steer with another card."""
    loaded = act.load(steer)
    Steer(dataclasses.replace(loaded.card, **changes), loaded.maps).save(folder)
    return folder


def test_what_computes_other_numbers_here_is_named(fitted, llama, tmp_path):
    steer = fitted / "run" / "steer"
    card = act.load(steer).card
    versions = {**card.numerics["versions"], "torch": "1.0"}
    spec = {**card.spec, "model": {**card.spec["model"], "path": str(tiny_llama(tmp_path / "other", seed=1))}}
    others = tmp_path / "prompts"
    others.mkdir()
    (others / "source.txt").write_text("\n".join(SOURCES[:-1]))
    shutil.copyfile(fitted / "target.txt", others / "target.txt")
    plan = {"plan": "0" * 64}
    for changes, base, words in (
        ({"plan": ""}, fitted, "fitted in memory"),
        ({"numerics": {**card.numerics, "threads": 7}} | plan, fitted, "threads was 7 and is 1"),
        ({"numerics": {**card.numerics, "versions": versions}} | plan, fitted, "versions was torch 1.0 and is torch"),
        ({"spec": spec}, fitted, "files of its model or tokenizer changed"),
        ({}, others, "prompts of the source changed, then 40 and now 39"),
        (plan, fitted, "version of actmap"),
    ):
        place = tmp_path / words.replace(" ", "-")
        with pytest.raises(ReplayError, match=words):
            replay(changed(steer, place, **changes), base, str(tmp_path / "run"), tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_another_steer_is_told_by_its_first_site_that_differs(fitted, tmp_path):
    steer = act.load(fitted / "run" / "steer")
    name, first = next(iter(steer.maps.items()))
    assert isinstance(first, TransportMap)
    shift = first.shift.clone()
    shift[3] = torch.nextafter(shift[3], torch.tensor(9.0))
    other = Steer(steer.card, dict(steer.maps) | {name: dataclasses.replace(first, shift=shift)})
    with pytest.raises(OtherSteerError, match=rf"the shift of {name} differs"):
        compare(tmp_path, steer, other)
    with pytest.raises(OtherSteerError, match="the pooling on its card differs"):
        compare(tmp_path, steer, Steer(dataclasses.replace(steer.card, pooling="max"), steer.maps))
    compare(tmp_path, steer, steer)


@pytest.mark.slow
def test_a_run_that_goes_on_from_another_is_replayed_without_it_unless_prompts_were_removed(llama, tmp_path):
    model = {"kind": "causal-lm", "path": str(llama)}
    few = CHANGES | {"source": {"limit": 16}, "target": {"limit": 8}}
    fit(write_spec(tmp_path, model, **few), tmp_path / "first", tmp_path / "cache")
    more = write_spec(tmp_path, model, extends="first", **few | {"source": {"limit": 20}})
    fit(more, tmp_path / "grown", tmp_path / "cache")
    shrunk = write_spec(tmp_path, model, extends="first", **few)
    lines = (tmp_path / "source.txt").read_text().splitlines()
    (tmp_path / "source.txt").write_text("\n".join([*lines[:3], *lines[4:16]]))
    steer = fit(shrunk, tmp_path / "shrunk", tmp_path / "cache").steer
    assert steer.card.source.num_removed == 1
    assert replay(tmp_path / "shrunk/steer", tmp_path, None, tmp_path / "cache").tensors == steer.card.tensors
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ReplayError, match="only the run that it extends has their places"):
        replay(tmp_path / "shrunk/steer", tmp_path, None, tmp_path / "cache")
    (tmp_path / "source.txt").write_text("\n".join(lines))
    assert replay(tmp_path / "grown/steer", tmp_path, None, tmp_path / "cache").sites == 1
