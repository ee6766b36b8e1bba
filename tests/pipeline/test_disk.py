"""The disk of a run: counted against its quota, and relieved of the sketches that folds have."""

import pytest

from pipeline.disk import Disk
from pipeline.errors import QuotaReachedError
from pipeline.laws import Laws
from pipeline.reduce import Reducer
from schemas.plan import LAWS
from tests.pipeline.made import MadeRun, made_plan

MERGED = {"sketches": "merged", "activations": "none"}


def made(tmp_path, **store) -> MadeRun:
    return MadeRun(tmp_path / "run", made_plan(store=MERGED | store))


def sketches(run: MadeRun) -> list[str]:
    return run.storage.keys("sketches.zarr")


def test_sketches_go_once_folds_of_all_sites_have_them_and_no_sooner(tmp_path):
    run = made(tmp_path)
    disk, receipts = Disk(run.storage, run.plan), run.do_all()
    for receipt in receipts:
        disk.add(receipt)
    before = sketches(run)
    disk.compact()
    assert sketches(run) == before
    Reducer(run.plan, run.uri, range(1)).finish()  # the other site's is still to come
    disk.compact()
    assert sketches(run) == before
    wanted = Laws(run.storage, run.plan).marginal("source", 1)
    Reducer(run.plan, run.uri, range(1, 2)).finish()
    disk.compact()
    left = [output.path for one in receipts if one.num_prompts < 4 for law in LAWS if (output := one.output(law))]
    assert sketches(run) == sorted(left)
    found = Laws(run.storage, run.plan).marginal("source", 1)
    assert (found.ends == wanted.ends).all()


def test_sketches_stay_where_units_are_kept(tmp_path):
    run = made(tmp_path, sketches="units")
    disk, receipts = Disk(run.storage, run.plan), run.do_all()
    Reducer(run.plan, run.uri, range(2)).finish()
    before = sketches(run)
    for receipt in receipts:
        disk.add(receipt)
    disk.compact()
    assert sketches(run) == before


def test_a_fold_of_other_sketches_deletes_nothing(tmp_path):
    run = made(tmp_path)
    run.do_all()
    Reducer(run.plan, run.uri, range(2)).finish()
    for unit in run.plan.units():  # another machine computes them anew, with other bits
        run.storage.delete(f"receipts/{unit.side}/{unit.index:08d}.json")
        run.do(unit, lost=(0,))
    disk, before = Disk(run.storage, run.plan), sketches(run)
    for receipt in run.ledger.receipts():
        disk.add(receipt)
    disk.compact()
    assert sketches(run) == before


def test_more_than_the_quota_is_refused_with_both_numbers(tmp_path):
    run = made(tmp_path, sketches="units")
    receipts = run.do_all()
    sizes = [sum(output.size for output in receipt.outputs) for receipt in receipts]
    quota = sum(sizes[:3])
    disk = Disk(run.storage, made_plan(store={"quota": quota}))
    for receipt in receipts[:3]:
        disk.add(receipt)
    with pytest.raises(QuotaReachedError, match=f"stored {quota + sizes[3]:,} bytes .*quota is {quota:,}"):
        disk.add(receipts[3])


def test_what_is_merged_does_not_count(tmp_path, monkeypatch):
    for module in ("disk", "reduce"):
        monkeypatch.setattr(f"pipeline.{module}.WRITE_EVERY", 8)
    run = MadeRun(tmp_path / "run", made_plan(num_source=4 * 20, num_target=4, store=MERGED))
    receipts = [run.do(unit) for unit in run.plan.units()]
    sizes = [sum(output.size for output in receipt.outputs) for receipt in receipts]
    quota = sum(sizes[:10])
    disk = Disk(run.storage, made_plan(num_source=4 * 20, num_target=4, store=MERGED | {"quota": quota}))
    reducer, there = Reducer(run.plan, run.uri, range(2)), len(sketches(run))
    for receipt in receipts:
        reducer.fold(receipt)
        disk.add(receipt)
    assert sum(sizes) > quota
    assert len(sketches(run)) == there - 2 * 16
