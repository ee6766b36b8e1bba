"""Folds: merged sketches of the very units that receipts speak of, and the laws that are made of them."""

import dataclasses
import shutil

import pytest
import torch

from act.marginal import Marginal
from pipeline.errors import DamagedRunError
from pipeline.folds import Folds, contents_of, foldable
from pipeline.frames import read_frame
from pipeline.laws import Laws
from pipeline.reduce import Reducer, shares
from pipeline.sketch import Grid, HistogramSketch
from schemas import record
from schemas.plan import LAWS, SIDES, LawName, side_of
from tests.pipeline.made import SITES, MadeRun, made_plan

EVERY = range(len(SITES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All units done, nothing folded."""
    run = MadeRun(tmp_path_factory.mktemp("made") / "run", made_plan())
    run.do_all()
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy to change."""
    shutil.copytree(finished.storage.root, tmp_path / "run")
    return MadeRun(tmp_path / "run", finished.plan)


def law_bits(run) -> list[torch.Tensor]:
    """All that the laws of a run are."""
    laws = Laws(run.storage, run.plan)
    found = [laws.marginal(law, site) for law in LAWS for site in EVERY]
    return [part for one in found for part in (one.lows, one.highs, one.ends, one.mean, one.variance)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def sketch_of(run, law, site: int, until: int) -> HistogramSketch:
    """The sketch of the first samples of a law, counted at once."""
    columns = run.plan.columns[SITES[site].hookpoint]
    whole = HistogramSketch.empty(read_frame(run.storage, run.plan, law)[columns], Grid(run.plan.precision(law)))
    whole.update(torch.from_numpy(run.samples(side_of(law))[:until, columns].copy()))
    return whole


def test_a_fold_is_the_sketch_of_all_its_samples_and_leaves_the_unit_that_is_not_full_out(run):
    Reducer(run.plan, run.uri, EVERY).finish()
    folds = Folds(run.storage, run.plan)
    num_units: dict[LawName, int] = {"source": 5, "target": 3, "tokens": 5}
    for law, units in num_units.items():
        covering = folds.covering(law, EVERY)
        assert covering is not None
        contents, found = covering
        assert list(contents) == list(range(units))
        assert contents == contents_of(run.ledger, law, contents)
        assert {fold.num_samples for fold in found} == {4 * units}
        for site in EVERY:
            (loaded,) = folds.load(found, range(site, site + 1))
            assert torch.equal(loaded.to_words(), sketch_of(run, law, site, 4 * units).to_words())


def test_only_full_units_are_foldable():
    plan = made_plan(num_source=22, num_target=12)
    assert [foldable(plan, "source", unit) for unit in range(6)] == [True] * 5 + [False]
    assert all(foldable(plan, "target", unit) for unit in range(3))


def test_the_law_of_a_site_is_that_of_all_samples_with_folds_and_without(run):
    without = law_bits(run)
    Reducer(run.plan, run.uri, EVERY).finish()
    assert same(law_bits(run), without)
    laws = Laws(run.storage, run.plan)
    for side in SIDES:
        wanted = Marginal.from_samples(torch.from_numpy(run.samples(side)[:, run.plan.columns["b:1"]].copy()))
        found = laws.marginal(side, 1)
        assert found.num_samples == wanted.num_samples
        assert torch.equal(found.low, wanted.low)
        assert torch.equal(found.high, wanted.high)
        assert ((found.mean - wanted.mean).abs() <= found.mean_error).all()


def test_folds_are_what_laws_are_made_of_where_units_are_gone(run):
    wanted = law_bits(run)
    Reducer(run.plan, run.uri, EVERY).finish()
    for unit in range(5):
        run.storage.delete(run.sketches.shard("source", unit))
    assert same(law_bits(run), wanted)
    run.storage.delete(run.sketches.shard("source", 5))  # not full, so in no fold
    with pytest.raises(DamagedRunError, match=r"source/c/5.*it is missing.*--repair"):
        law_bits(run)


def test_reducers_that_stopped_at_different_units_leave_every_site_its_law(run):
    wanted = law_bits(run)
    receipts = list(run.ledger.receipts("source"))
    for owned, count in ((range(1), 5), (range(1, 2), 3)):
        reducer = Reducer(run.plan, run.uri, owned)
        for receipt in receipts[:count]:
            reducer.fold(receipt)
        reducer.write()
    for unit in range(3):  # what both have merged, a run of merged sketches has deleted
        run.storage.delete(run.sketches.shard("source", unit))
    assert same(law_bits(run), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"contents": 5}, {"key": "0" * 64}, {"law": "target"}, {"stop": 9}])
def test_a_fold_of_other_sketches_is_passed_by(run, changes):
    wanted = law_bits(run)
    Reducer(run.plan, run.uri, EVERY).finish()
    folds = Folds(run.storage, run.plan)
    (fold,) = folds.of("source")
    other = Reducer(run.plan, run.uri, EVERY)  # would say what the fold holds, were it believed
    run.storage.write(folds.place(fold), record.seal(dataclasses.replace(fold, **changes)))
    (unit,) = [one for one in run.ledger.receipts("source") if one.unit == 4]
    data = run.storage.read(unit.output("source").path)
    run.storage.write(fold.output.path, data)  # its file is another's, too
    assert same(law_bits(run), wanted)
    resumed = Reducer(run.plan, run.uri, EVERY)
    resumed.finish()
    assert same(law_bits(run), wanted)
    other.finish()
    assert same(law_bits(run), wanted)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "record"])
def test_a_damaged_fold_is_made_again_from_the_units(run, damage):
    wanted = law_bits(run)
    Reducer(run.plan, run.uri, EVERY).finish()
    folds = Folds(run.storage, run.plan)
    (fold,) = folds.of("source")
    key = folds.place(fold) if damage == "record" else fold.output.path
    data = run.storage.read(key)
    run.storage.delete(key)
    if damage != "gone":
        run.storage.write(key, data[:100] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    assert same(law_bits(run), wanted)
    Reducer(run.plan, run.uri, EVERY).finish()
    assert run.storage.read(key) == data


def test_a_flipped_byte_in_a_sketch_is_found_before_it_is_used(run):
    key = run.sketches.shard("source", 2)
    data = bytearray(run.storage.read(key))
    data[len(data) // 3] ^= 1
    run.storage.write(key, bytes(data))
    with pytest.raises(DamagedRunError, match=r"source/c/2.*run the same command again with --repair"):
        law_bits(run)


def test_a_unit_that_was_quarantined_in_part_counts_with_the_rest(tmp_path):
    run = MadeRun(tmp_path / "run", made_plan())
    for unit in run.plan.units():
        run.do(unit, lost=(1, 2) if unit.index == 1 else ())
    Reducer(run.plan, run.uri, EVERY).finish()
    assert Laws(run.storage, run.plan).marginal("source", 0).num_samples == 22 - 2
    assert Folds(run.storage, run.plan).of("source")[0].num_samples == 20 - 2


class TestReducers:
    @pytest.mark.parametrize("number", [1, 2])
    def test_units_fold_in_any_order_and_only_once(self, run, number):
        wanted = law_bits(run)
        receipts = list(run.ledger.receipts())
        for owned in [EVERY] if number == 1 else [range(1), range(1, 2)]:
            reducer = Reducer(run.plan, run.uri, owned)
            for receipt in [*receipts[::-1], *receipts[::2]]:
                reducer.fold(receipt)
            reducer.finish()
        for law in LAWS:
            for key in run.storage.keys(f"sketches.zarr/{law}/c"):
                if not key.endswith(("c/5/0/0",)):
                    run.storage.delete(key)
        assert same(law_bits(run), wanted)

    def test_one_that_takes_the_place_of_a_killed_one_with_other_shares_goes_on_to_the_same_bits(self, run):
        wanted = law_bits(run)
        receipts = list(run.ledger.receipts())
        killed = Reducer(run.plan, run.uri, EVERY)
        for receipt in receipts[:3]:
            killed.fold(receipt)
        killed.write()
        killed.fold(receipts[3])  # of which nothing is left
        del killed
        for unit in range(3):
            run.storage.delete(run.sketches.shard("source", unit))
        for owned in (range(1), range(1, 2)):
            Reducer(run.plan, run.uri, owned).finish()
        assert same(law_bits(run), wanted)
        found = {(fold.first, fold.stop, fold.num_units) for fold in Folds(run.storage, run.plan).of("source")}
        assert found >= {(0, 1, 5), (1, 2, 5)}

    def test_what_it_wrote_before_goes_when_it_writes_more(self, run):
        reducer, receipts = Reducer(run.plan, run.uri, EVERY), list(run.ledger.receipts())
        for count in (2, 4):
            for receipt in receipts[:count]:
                reducer.fold(receipt)
            reducer.write()
            (fold,) = Folds(run.storage, run.plan).of("source")
            assert fold.num_units == count
            assert len(run.storage.keys("folds/source")) == 2

    def test_a_read_that_fails_once_leaves_every_sample_counted_once(self, run, monkeypatch):
        wanted, load, left = law_bits(run), type(run.ledger).load, [2, 1, 0]

        def failing(self, output):
            if left and left.pop() == 1:
                raise OSError(5, "Input/output error")
            return load(self, output)

        reducer, receipts = Reducer(run.plan, run.uri, EVERY), list(run.ledger.receipts())
        monkeypatch.setattr(type(run.ledger), "load", failing)
        with pytest.raises(OSError, match="Input/output"):
            reducer.fold(receipts[0])
        reducer.finish()
        assert same(law_bits(run), wanted)
        assert {fold.num_samples for law in LAWS for fold in Folds(run.storage, run.plan).of(law)} == {20, 12}

    @pytest.mark.parametrize("number", [1, 2, 3, 7, 100])
    def test_every_site_has_one_reducer_and_shares_are_about_equal(self, number):
        sites = tuple(dataclasses.replace(SITES[0], hookpoint=f"s{n}", width=64 * (1 + n % 3)) for n in range(61))
        owned = shares(dataclasses.replace(made_plan(compute={"reducers": number}), sites=sites))
        assert [place for share in owned for place in share] == list(range(61))
        widths = [sum(sites[place].width for place in share) for share in owned]
        assert max(widths) <= sum(widths) / number + 2 * 192
