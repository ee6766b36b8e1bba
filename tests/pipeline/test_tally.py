"""The tally: sums of receipts, whatever order they come in."""

import pytest

from pipeline.errors import LossError
from pipeline.tally import Tally
from schemas.card import SplitCard
from schemas.receipt import Quarantined, Split
from tests.pipeline.made import MadeRun, made_plan


@pytest.fixture(scope="module")
def receipts(tmp_path_factory):
    run = MadeRun(tmp_path_factory.mktemp("made") / "run", made_plan())
    splits = {("source", 1): (Split(0, 2), Split(3, 4))}
    return [
        run.do(
            unit,
            lost=(1,) if (unit.side, unit.index) in {("source", 2), ("target", 0)} else (),
            num_truncated=unit.index,
            splits=splits.get((unit.side, unit.index), ()),
        )
        for unit in run.plan.units()
    ]


def told(receipts) -> Tally:
    tally = Tally(made_plan())
    for receipt in receipts:
        tally.add(receipt)
    return tally


def test_it_is_the_sum_of_the_receipts_in_any_order(receipts):
    for order in (receipts, receipts[::-1]):
        tally = told(order)
        assert (tally.num_units, tally.num_prompts, tally.num_lost) == (6 + 3, 22 + 12, 2)
        assert tally.num_tokens == 5 * (22 + 12 - 2)
        assert tally.num_truncated == sum(range(6)) + sum(range(3))
        assert tally.stored_bytes == sum(output.size for receipt in receipts for output in receipt.outputs)
        assert tally.worker_seconds == pytest.approx(0.5 * 9)
        assert tally.model == "m" * 64
        source, target = tally.sides["source"], tally.sides["target"]
        assert (source.num_units, source.num_prompts, source.num_samples) == (6, 22, 21)
        assert (target.num_units, target.num_prompts, target.num_samples) == (3, 12, 11)
        assert source.lost == [Quarantined(9, "empty")]
        assert target.lost == [Quarantined(1, "empty")]
        assert source.splits == [SplitCard(1, 0, 2), SplitCard(1, 3, 4)]
        assert target.splits == []
    assert told(receipts).losses == ["source row 9 (empty)", "target row 1 (empty)"]


def test_more_losses_than_the_plan_allows_are_refused(receipts):
    tally = told(receipts)
    tally.check()  # 2 of 34, and a tenth may be
    strict = Tally(made_plan(failures={"quarantine_at_most": 1.9 / 34}))
    for receipt in receipts:
        strict.add(receipt)
    with pytest.raises(LossError, match=r"^2 prompts gave no activation, 1 are allowed: source row 9 \(empty\)"):
        strict.check()


def test_workers_with_different_weights_are_seen(receipts, tmp_path):
    run = MadeRun(tmp_path / "run", made_plan())
    other = run.do(next(run.plan.units()), model="n" * 64)
    assert told([*receipts[1:], other]).models == {"m" * 64, "n" * 64}
