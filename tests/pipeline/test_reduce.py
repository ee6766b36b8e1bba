"""Sketch laws of whole runs: the same bits whatever happens, near the exact ones, mended where a frame does not fit."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from act.steer import load as load_steer
from jobs.fit import Fitted, fit
from jobs.status import status
from pipeline.errors import DamagedRunError, PairsPlanError
from pipeline.folder import RunFolder
from pipeline.frames import read_frame
from pipeline.laws import Laws
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.reduce import Reducer, shares
from pipeline.sketch import Grid, HistogramSketch
from pipeline.store import SketchStore
from schemas.events import Notice
from schemas.plan import SIDES, Plan, Site
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


def laws_of(root: Path) -> tuple[Plan, Laws]:
    plan = read_plan(RunFolder(root))
    receipts, missing = Ledger(RunFolder(root), plan).split(plan.units())
    assert not missing
    return plan, Laws(plan, root, receipts)


def copied(root: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_a_law_on_disk_is_that_of_all_stored_samples_at_once(sketched):
    plan, laws = laws_of(sketched)
    folder = RunFolder(sketched)
    store = SketchStore(folder.sketches, plan)
    for number, site in enumerate(plan.sites):
        for side in SIDES:
            frame = read_frame(folder.frame(side))[plan.columns[site.hookpoint]]
            whole = HistogramSketch.empty(frame, Grid(plan.law.precision))
            whole.update(laws.samples(side, number))
            words = store.read_law(side, number)
            assert words is not None
            assert torch.equal(torch.from_numpy(words), whole.to_words())


def test_the_law_of_tokens_counts_every_real_token(sketched):
    plan, laws = laws_of(sketched)
    receipts = Ledger(RunFolder(sketched), plan).split(plan.units())[0]
    tokens = sum(sum(one.num_tokens) for one in receipts if one.side == "source")
    law = laws.marginal("tokens", 0)
    assert law.num_samples == tokens > len(SOURCES)
    pooled = laws.marginal("source", 0)
    assert (law.low <= pooled.low).all()
    assert (law.high >= pooled.high).all()
    assert (law.low < pooled.low).any()


def test_without_stored_activations_the_steer_has_the_same_bits(model, sketched, tmp_path):
    none = run(tmp_path, model, **SKETCH, store={"activations": "none"})
    assert none.steer.card.tensors == load_steer(sketched / "steer").card.tensors
    assert none.plan.fingerprint == read_plan(RunFolder(sketched)).fingerprint
    assert not (tmp_path / "run/activations.zarr").exists()
    assert none.plan.disk == 0


def test_units_fold_in_any_order_and_only_once(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    plan = read_plan(folder)
    receipts = Ledger(folder, plan).split(plan.units())[0]
    before = {path: path.read_bytes() for path in (folder.sketches / "laws").rglob("0") if path.is_file()}
    shutil.rmtree(folder.sketches / "laws")
    for owned in shares(plan.sites, 2):
        reducer = Reducer(plan, folder.root, owned)
        for receipt in [*receipts[::-1], *receipts[::2]]:
            reducer.fold(receipt)
        reducer.finish(receipts)
    assert before
    assert {path: path.read_bytes() for path in before} == before


def test_laws_that_were_never_finished_are_merged_from_the_units(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    laws = laws_of(folder.root)[1]
    finished = [laws.marginal(law, 1) for law in ("source", "target", "tokens")]
    shutil.rmtree(folder.sketches / "laws")
    merged = [laws_of(folder.root)[1].marginal(law, 1) for law in ("source", "target", "tokens")]
    for one, other in zip(finished, merged, strict=True):
        assert torch.equal(one.lows, other.lows)
        assert torch.equal(one.ends, other.ends)
        assert torch.equal(one.variance, other.variance)


def test_two_workers_and_two_reducers_give_the_same_bits(model, sketched, tmp_path):
    together = run(tmp_path, model, **SKETCH, compute={"workers": 2, "reducers": 2})
    assert together.steer.card.tensors == load_steer(sketched / "steer").card.tensors
    told = status(tmp_path / "run").running
    assert {(site.hookpoint, site.law, site.num_samples) for site in told if site.law != "tokens"} == {
        (site.hookpoint, side, count)
        for site in together.plan.sites
        for side, count in zip(SIDES, (len(SOURCES), len(TARGETS)), strict=True)
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


def test_a_flipped_byte_in_a_sketch_is_found_before_it_is_used(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    shutil.rmtree(folder.sketches / "laws")
    shard = folder.sketches / "units/source/c/2/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shard.write_bytes(bytes(damaged))
    plan, laws = laws_of(folder.root)
    with pytest.raises(DamagedRunError, match=r"units/source/c/2.*delete .*receipts/source/00000002.json"):
        [laws.marginal("source", number) for number in range(len(plan.sites))]
    receipts = Ledger(folder, plan).split(plan.units())[0]
    with pytest.raises(DamagedRunError, match=r"units/source/c/2"):
        list(Ledger(folder, plan).verify(receipts))


def test_running_laws_are_told_while_units_land(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    plan = read_plan(folder)
    for path in folder.running.iterdir():
        path.unlink()
    reducer = Reducer(plan, folder.root, range(len(plan.sites)))
    receipts = [one for one in Ledger(folder, plan).split(plan.units())[0] if one.side == "source"]
    reducer.fold(receipts[0])
    first = status(folder.root).running
    assert {site.num_samples for site in first if site.law == "source"} == {receipts[0].num_prompts}
    assert all(site.drift is None for site in first)
    for receipt in receipts[1:]:
        reducer.fold(receipt)
    reducer.tell()
    last = [site for site in status(folder.root).running if site.law == "source"]
    _, laws = laws_of(folder.root)
    median = laws.marginal("source", 0).quantile(torch.tensor([0.5]))[0].median()
    assert last[0].num_samples == len(SOURCES)
    assert last[0].quantiles[2] == pytest.approx(float(median))
    assert all(site.drift is not None and site.drift >= 0 for site in last)


def test_status_of_exact_laws_tells_the_quantiles_of_the_values(exact):
    told, plan = status(exact).running, read_plan(RunFolder(exact))
    assert [(site.hookpoint, site.law) for site in told] == [
        (site.hookpoint, side) for site in plan.sites for side in SIDES
    ]
    assert told[0].num_samples == len(SOURCES)
    assert list(told[0].quantiles) == sorted(told[0].quantiles)


def test_a_read_that_fails_once_leaves_every_sample_counted_once(sketched, tmp_path, monkeypatch):
    folder = copied(sketched, tmp_path)
    plan = read_plan(folder)
    receipts = Ledger(folder, plan).split(plan.units())[0]
    shutil.rmtree(folder.sketches / "laws")
    reducer, read, calls = Reducer(plan, folder.root, range(len(plan.sites))), SketchStore.read, itertools.count()

    def failing(self, *arguments):
        if next(calls) == 2:
            raise OSError(5, "Input/output error")
        return read(self, *arguments)

    monkeypatch.setattr(SketchStore, "read", failing)
    with pytest.raises(OSError, match="Input/output"):
        reducer.fold(receipts[0])
    reducer.finish(receipts)
    laws = laws_of(folder.root)[1]
    assert [laws.marginal("source", number).num_samples for number in range(len(plan.sites))] == [40] * len(plan.sites)
    store = SketchStore(folder.sketches, plan)
    for number in range(len(plan.sites)):
        words = store.read_law("source", number)
        assert words is not None
        assert HistogramSketch.from_words(torch.from_numpy(words), Grid(5)).num_samples == len(SOURCES)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_finished_law_is_made_again_from_the_units(sketched, tmp_path, damage):
    folder = copied(sketched, tmp_path)
    wanted = laws_of(folder.root)[1].marginal("source", 0)
    shard = folder.sketches / "laws/source/00000/c/0/0"
    written = shard.read_bytes()
    if damage == "gone":
        shutil.rmtree(shard.parent.parent)
    else:
        shard.write_bytes(written[:100] if damage == "cut" else bytes([written[0] ^ 1]) + written[1:])
    found = laws_of(folder.root)[1].marginal("source", 0)
    assert torch.equal(found.lows, wanted.lows)
    assert torch.equal(found.ends, wanted.ends)


def test_a_damaged_frame_says_what_to_delete(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    path = folder.frame("source")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DamagedRunError, match=r"delete .*source\.safetensors and run"):
        read_frame(path)


def test_status_shows_the_reducer_that_has_seen_most_and_passes_a_torn_file_by(sketched, tmp_path):
    folder = copied(sketched, tmp_path)
    plan = read_plan(folder)
    before = status(folder.root).running
    receipts = Ledger(folder, plan).split(plan.units())[0]
    earlier = Reducer(plan, folder.root, [len(plan.sites) - 1])  # of a start with more reducers, that was killed
    earlier.fold(receipts[0])
    (folder.running / "00099.json").write_bytes(b"{")
    assert status(folder.root).running == before


def test_contrast_pairs_are_asked_for_before_anything_is_written(model, tmp_path):
    with pytest.raises(PairsPlanError, match="40 source and 28 target"):
        run(tmp_path, model, transport={"method": "actadd"})
    assert not (tmp_path / "run").exists()


def test_few_values_that_no_frame_fits_are_not_called_mended(model, tmp_path):
    spec = write_spec(tmp_path, model, **SKETCH, pooling="last", transport={"method": "linear"})
    for name in ("source", "target"):
        (tmp_path / f"{name}.txt").write_text(
            "".join(f"Say {'very ' * (n % 7)}much{'.?!'[n % 3]}\n" for n in range(900))
        )
    fitted = fit(spec, tmp_path / "run", tmp_path / "cache")
    assert fitted.steer.card.sites[0].misfit > 0


def misframed(folder: Path, model: dict[str, str], **changes) -> tuple[Fitted, list[str]]:
    """A run whose source frame has a centre far from its samples for every third neuron."""
    spec = write_spec(folder, model, **SKETCH, **changes)
    run(folder / "other", model, **SKETCH)
    other = RunFolder(folder / "other/run")
    frame = load(other.frame("source").read_bytes())
    frame["centre"][::3] += 1000.0
    mine = RunFolder(folder / "run")
    mine.make()
    shutil.copy(other.plan, mine.plan)
    mine.frame("source").write_bytes(save(frame))
    notices: list[str] = []

    def listen(event):
        if isinstance(event, Notice):
            notices.append(event.sentence)

    return fit(spec, mine.root, folder / "cache", listen), notices


def test_a_frame_that_does_not_fit_is_seen_and_mended_from_the_activations(model, exact, tmp_path):
    fitted, notices = misframed(tmp_path, model)
    assert any("counted anew" in notice for notice in notices)
    assert all(site.misfit == 0 for site in fitted.steer.card.sites)
    site = fitted.plan.sites[0].hookpoint
    source = laws_of(tmp_path / "run")[1].marginal("source", 0)
    moved = fitted.steer.maps[site].scale[::3] - load_steer(exact / "steer").maps[site].scale[::3]
    assert (moved.abs() * source.variance[::3].sqrt() <= 0.2 * source.variance[::3].sqrt()).all()


def test_without_activations_it_is_said_and_the_bound_says_how_much(model, exact, tmp_path):
    fitted, notices = misframed(tmp_path, model, store={"activations": "none"})
    assert any("activations: all" in notice for notice in notices)
    assert all(site.misfit >= 1 for site in fitted.steer.card.sites)
    for number, (name, found) in enumerate(fitted.steer.maps.items()):
        source, wanted = laws_of(exact)[1].marginal("source", number), load_steer(exact / "steer").maps[name]
        for x in (source.low, source.high):
            apart = ((found.scale.double() - wanted.scale) * x + (found.shift.double() - wanted.shift)).abs()
            assert (apart <= found.error + wanted.error).all()


@pytest.mark.parametrize("num_reducers", [1, 2, 3, 7, 100])
def test_every_site_has_one_reducer_and_shares_are_about_equal(num_reducers):
    sites = tuple(Site(f"s{n}", "Norm", 64 * (1 + n % 3)) for n in range(61))
    owned = shares(sites, num_reducers)
    assert [number for share in owned for number in share] == list(range(61))
    widths = [sum(sites[number].width for number in share) for share in owned]
    assert max(widths) <= sum(widths) / num_reducers + 2 * 192


def test_the_frame_of_a_law_does_not_depend_on_workers_or_store(model, sketched, tmp_path):
    run(tmp_path, model, **SKETCH, store={"activations": "none"})
    for law in ("source", "target", "tokens"):
        assert RunFolder(tmp_path / "run").frame(law).read_bytes() == RunFolder(sketched).frame(law).read_bytes()
