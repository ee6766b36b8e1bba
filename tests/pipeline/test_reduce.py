"""Sketch laws of whole runs: the same bits whatever is stored, near the exact ones, honest where no frame fits."""

import shutil
from pathlib import Path

import pytest
import torch

from act.steer import load as load_steer
from jobs.fit import fit
from jobs.start import Fitted
from jobs.status import status
from pipeline.errors import DamagedRunError, PairsPlanError
from pipeline.frames import choose_frame, read_frame
from pipeline.laws import Laws
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.reduce import Reducer
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.storage import LocalStorage
from schemas.events import Notice
from schemas.plan import LAWS, SIDES, Plan
from tests.jobs.runs import SOURCES, TARGETS, run, write_spec
from tests.models import tiny_llama

SKETCH = {"law": {"kind": "sketch"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, str]:
    return {"kind": "causal-lm", "path": str(tiny_llama(tmp_path_factory.mktemp("model") / "llama"))}


@pytest.fixture(scope="module")
def sketched(model, tmp_path_factory) -> Path:
    """A finished run of sketches, one process, activations kept."""
    folder = tmp_path_factory.mktemp("sketched")
    run(folder, model, **SKETCH)
    return folder / "run"


@pytest.fixture(scope="module")
def exact(model, tmp_path_factory) -> Path:
    """The same with exact laws."""
    folder = tmp_path_factory.mktemp("exact")
    run(folder, model, law={"kind": "exact"})
    return folder / "run"


@pytest.fixture(scope="module")
def bare(model, tmp_path_factory) -> Fitted:
    """The same sketches, but nothing else is kept, and of them only what two reducers have merged."""
    store = {"activations": "none", "sketches": "merged"}
    return run(tmp_path_factory.mktemp("bare"), model, **SKETCH, store=store, compute={"reducers": 2})


def laws_of(root: Path) -> tuple[Plan, Laws]:
    storage = LocalStorage(root)
    plan = read_plan(storage)
    assert not list(Ledger(storage, plan).missing())
    return plan, Laws(storage, plan)


def copied(root: Path, tmp_path: Path) -> LocalStorage:
    shutil.copytree(root, tmp_path / "run", symlinks=True)
    return LocalStorage(tmp_path / "run")


def test_a_law_is_that_of_all_stored_samples_at_once(sketched):
    plan, laws = laws_of(sketched)
    for number, site in enumerate(plan.sites):
        for side in SIDES:
            frame = read_frame(LocalStorage(sketched), plan, side)[plan.columns[site.hookpoint]]
            whole = HistogramSketch.empty(frame, Grid(plan.precision(side)))
            whole.update(laws.samples(side, number))
            found, wanted = laws.marginal(side, number), whole.marginal()
            assert torch.equal(found.lows, wanted.lows)
            assert torch.equal(found.ends, wanted.ends)
            assert torch.equal(found.variance, wanted.variance)


def test_the_law_of_tokens_counts_every_real_token(sketched):
    plan, laws = laws_of(sketched)
    tokens = sum(int(one.num_tokens.sum()) for one in Ledger(LocalStorage(sketched), plan).receipts("source"))
    law = laws.marginal("tokens", 0)
    assert law.num_samples == tokens > len(SOURCES)
    pooled = laws.marginal("source", 0)
    assert (law.low <= pooled.low).all()
    assert (law.high >= pooled.high).all()
    assert (law.low < pooled.low).any()


def test_without_stored_activations_or_sketches_the_steer_has_the_same_bits(sketched, bare):
    assert bare.steer.card.tensors == load_steer(sketched / "steer").card.tensors
    assert bare.plan.fingerprint == read_plan(LocalStorage(sketched)).fingerprint
    assert not bare.storage.keys("activations.zarr")
    assert bare.plan.disk == 0
    left = [key for key in bare.storage.keys("sketches.zarr") if "/c/" in key]
    assert left == ["sketches.zarr/target/c/3/0/0"]  # which is not full, so in no fold


def test_with_a_sample_of_the_activations_the_steer_has_the_same_bits(model, sketched, tmp_path):
    sample = run(tmp_path, model, **SKETCH, store={"activations": "sample"})
    assert sample.steer.card.tensors == load_steer(sketched / "steer").card.tensors
    sizes = [
        sum(
            out.size
            for one in Ledger(storage, sample.plan).receipts()
            for out in one.outputs
            if out.kind == "activations"
        )
        for storage in (sample.storage, LocalStorage(sketched))
    ]
    assert sizes[0] < 0.2 * sizes[1]
    assert Laws(sample.storage, sample.plan).samples("target", 0).shape == (1, 32)  # of prompts 0, 309, 332, …


@pytest.mark.slow
def test_two_workers_and_two_reducers_give_the_same_bits(model, sketched, tmp_path):
    together = run(tmp_path, model, **SKETCH, compute={"workers": 2, "reducers": 2})
    assert together.steer.card.tensors == load_steer(sketched / "steer").card.tensors
    told = status(tmp_path / "run").running
    assert {(site.hookpoint, site.law, site.num_samples) for site in told if site.law != "tokens"} == {
        (site.hookpoint, side, count)
        for site in together.plan.sites
        for side, count in zip(SIDES, (len(SOURCES), len(TARGETS) - len(TARGETS) % 8), strict=True)
    }


def test_maps_from_sketches_are_as_near_to_exact_ones_as_their_bounds_say(sketched, exact):
    steer = load_steer(sketched / "steer")
    _, laws = laws_of(sketched)
    for number, (name, found) in enumerate(steer.maps.items()):
        wanted = load_steer(exact / "steer").maps[name]
        source = laws.marginal("source", number)
        for x in (source.low, source.high):
            apart = ((found.scale.double() - wanted.scale) * x + (found.shift.double() - wanted.shift)).abs()
            assert (apart <= found.error + wanted.error).all()
        assert (found.error > wanted.error).any()


def test_running_laws_are_told_while_units_land(sketched, tmp_path):
    storage = copied(sketched, tmp_path)
    plan = read_plan(storage)
    for folder in ("running", "folds"):
        storage.delete_all(folder)
    reducer = Reducer(plan, storage.uri, range(len(plan.sites)))
    receipts = list(Ledger(storage, plan).receipts("source"))
    reducer.fold(receipts[0])
    first = status(storage.uri).running
    assert {site.num_samples for site in first if site.law == "source"} == {receipts[0].num_prompts}
    assert all(site.drift is None for site in first)
    for receipt in receipts[1:]:
        reducer.fold(receipt)
    reducer.tell()
    last = [site for site in status(storage.uri).running if site.law == "source"]
    _, laws = laws_of(storage.root)
    median = laws.marginal("source", 0).quantile(torch.tensor([0.5]))[0].median()
    assert last[0].num_samples == len(SOURCES)
    assert last[0].quantiles[2] == pytest.approx(float(median))
    assert all(site.drift is not None and site.drift >= 0 for site in last)


def test_status_of_exact_laws_tells_the_quantiles_of_the_values(exact):
    told, plan = status(exact).running, read_plan(LocalStorage(exact))
    assert [(site.hookpoint, site.law) for site in told] == [
        (site.hookpoint, side) for site in plan.sites for side in SIDES
    ]
    assert told[0].num_samples == len(SOURCES)
    assert list(told[0].quantiles) == sorted(told[0].quantiles)


@pytest.mark.parametrize("damage", ["cut", "flipped", "another law's", "gone"])
def test_a_damaged_frame_says_what_to_do(sketched, tmp_path, damage):
    storage = copied(sketched, tmp_path)
    data = storage.read("frames/source.json")
    written = {
        "cut": data[:20],
        "flipped": data.replace(b"source", b"sourca"),
        "another law's": storage.read("frames/target.json"),
    }
    storage.delete("frames/source.json")
    if damage != "gone":
        storage.write("frames/source.json", written[damage])
    with pytest.raises(DamagedRunError, match=r"frames/source\.json is damaged.*same command again with --repair"):
        read_frame(storage, read_plan(storage), "source")


def test_status_shows_the_reducer_that_has_seen_most_and_passes_a_torn_file_by(sketched, tmp_path):
    storage = copied(sketched, tmp_path)
    plan = read_plan(storage)
    before = status(storage.uri).running
    storage.delete_all("folds")
    last = len(plan.sites) - 1
    earlier = Reducer(plan, storage.uri, range(last, last + 1))  # of a start with more reducers, that was killed
    earlier.fold(next(Ledger(storage, plan).receipts()))
    storage.note("running/00099.json", b"{")
    assert status(storage.uri).running == before


def test_contrast_pairs_are_asked_for_before_anything_is_written(model, tmp_path):
    with pytest.raises(PairsPlanError, match="40 source and 28 target"):
        run(tmp_path, model, transport={"method": "actadd"})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_few_values_that_no_frame_fits_are_not_called_mended(model, tmp_path):
    spec = write_spec(
        tmp_path, model, law={"kind": "sketch", "misfits": "mend"}, pooling="last", compute={"unit_size": 210}
    )
    for name in ("source", "target"):
        (tmp_path / f"{name}.txt").write_text(
            "".join(f"Say {'very ' * (n % 7)}much{'.?!'[n % 3]}\n" for n in range(210))
        )
    fitted = fit(spec, tmp_path / "run", tmp_path / "cache")
    assert fitted.steer.card.sites[0].misfit > 0


@pytest.fixture
def misframed(model, tmp_path, monkeypatch):
    """Returns a run whose source frame has a centre far from its samples for every third neuron, and what it told."""

    def far(plan, law, *how):
        frame = choose_frame(plan, law, *how)
        tensors = frame.to_tensors()
        tensors["centre"][::3] += 1000.0 if law == "source" else 0.0
        return Frame.from_tensors(tensors)

    def fitted(name, **changes) -> tuple[Fitted, list[str]]:
        monkeypatch.setattr("pipeline.extract.choose_frame", far)
        notices: list[str] = []

        def listen(event):
            if isinstance(event, Notice):
                notices.append(event.sentence)

        spec = write_spec(tmp_path / name, model, **changes)
        return fit(spec, tmp_path / name / "run", tmp_path / "cache", listen), notices

    return fitted


@pytest.mark.slow
def test_a_frame_that_does_not_fit_is_mended_from_the_activations_where_that_is_asked_for(misframed, exact):
    fitted, notices = misframed("mended", law={"kind": "sketch", "misfits": "mend"})
    assert any("counted anew" in notice for notice in notices)
    assert all(site.misfit == 0 for site in fitted.steer.card.sites)
    site = fitted.plan.sites[0].hookpoint
    source = Laws(fitted.storage, fitted.plan).marginal("source", 0)
    moved = fitted.steer.maps[site].scale[::3] - load_steer(exact / "steer").maps[site].scale[::3]
    assert (moved.abs() * source.variance[::3].sqrt() <= 0.2 * source.variance[::3].sqrt()).all()


@pytest.mark.slow
def test_else_it_is_said_the_bound_says_how_much_and_the_bits_do_not_depend_on_what_is_stored(misframed, exact):
    fitted, notices = misframed("all", **SKETCH)
    assert any("do not fit" in notice and "`law: {misfits: mend}`" in notice for notice in notices)
    assert all(site.misfit >= 1 for site in fitted.steer.card.sites)
    for number, (name, found) in enumerate(fitted.steer.maps.items()):
        source, wanted = laws_of(exact)[1].marginal("source", number), load_steer(exact / "steer").maps[name]
        for x in (source.low, source.high):
            apart = ((found.scale.double() - wanted.scale) * x + (found.shift.double() - wanted.shift)).abs()
            assert (apart <= found.error + wanted.error).all()
    none, said = misframed("none", **SKETCH, store={"activations": "none"})
    assert none.steer.card.tensors == fitted.steer.card.tensors
    assert said == notices


def test_the_frame_of_a_law_does_not_depend_on_workers_or_store(sketched, bare):
    for law in LAWS:
        key = f"frames/{law}.json"
        assert bare.storage.read(key) == LocalStorage(sketched).read(key)
