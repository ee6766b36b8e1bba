"""The ledger: a receipt is what it was written as, the first counts, and files are those that receipts speak of."""

import dataclasses
from typing import Any

import pytest

from pipeline.errors import DamagedRunError, DifferentBitsError
from pipeline.ledger import Ledger
from pipeline.storage import LocalStorage
from schemas import record
from schemas.plan import Unit
from tests.pipeline.made import MadeRun, made_plan

UNIT = Unit("source", 2, 8, 12)
KEY = "receipts/source/00000002.json"


@pytest.fixture
def run(tmp_path):
    return MadeRun(tmp_path / "run", made_plan())


def test_a_unit_is_done_when_its_receipt_is_there_and_for_no_other_reason(run):
    units = list(run.plan.units())
    assert list(run.ledger.missing()) == units
    assert run.ledger.find(UNIT) is None
    receipt = run.do(UNIT)
    assert run.ledger.find(UNIT) == receipt
    assert list(run.ledger.receipts()) == [receipt]
    assert list(run.ledger.receipts("target")) == []
    assert list(run.ledger.missing()) == [unit for unit in units if unit != UNIT]
    run.storage.delete(KEY)
    assert list(run.ledger.missing()) == units


def test_receipts_come_in_order_whatever_order_they_were_written_in(run):
    units = list(run.plan.units())
    for unit in units[::-1]:
        run.do(unit)
    assert [(one.side, one.unit) for one in run.ledger.receipts()] == [(unit.side, unit.index) for unit in units]


def test_the_first_receipt_counts(run):
    first = run.do(UNIT)
    again = run.do(UNIT, attempt=2, seconds=99.0)
    assert again == first
    assert run.ledger.find(UNIT) == first


def test_another_attempt_with_other_bits_is_refused_and_the_first_stays(run):
    first = run.do(UNIT)
    before = run.ledger.load(first.outputs[0])
    with pytest.raises(DifferentBitsError, match="two attempts at source unit 2 gave different bits"):
        run.ledger.publish(UNIT, "activations", first.outputs[0].path, b"other")
    other = dataclasses.replace(first.outputs[0], sha256="0" * 64)
    with pytest.raises(DifferentBitsError, match=KEY):
        run.ledger.commit(UNIT, dataclasses.replace(first, outputs=(other,)))
    assert run.ledger.load(first.outputs[0]) == before


def test_a_file_without_a_receipt_gives_way(run):
    run.storage.write("activations.zarr/source/c/2/0", b"torn")
    output = run.ledger.publish(UNIT, "activations", "activations.zarr/source/c/2/0", b"whole")
    assert run.ledger.load(output) == b"whole"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone"])
@pytest.mark.parametrize("way", ["load", "check"])
def test_a_file_that_is_not_as_it_was_written_is_named(run, damage, way):
    output = run.do(UNIT).outputs[0]
    data = run.storage.read(output.path)
    run.storage.delete(output.path)
    if damage != "gone":
        changed = {"flipped": data[:50] + bytes([data[50] ^ 4]) + data[51:], "cut": data[:-1], "longer": data + b"\0"}
        run.storage.write(output.path, changed[damage])
    with pytest.raises(DamagedRunError, match=rf"{output.path} is damaged.*run the same command again with --repair"):
        getattr(run.ledger, way)(output)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": "0" * 64},
        {"side": "target"},
        {"unit": 1},
        {"num_prompts": 3},
        {"tokens": b"\1\0\0\0" * 3},
        {"tokens": b"\1\0\0\0" * 5},
    ],
)
def test_the_receipt_of_something_else_is_no_receipt(run, changes: dict[str, Any]):
    receipt = dataclasses.replace(run.do(UNIT), **changes)
    run.storage.write(KEY, record.seal(receipt))
    with pytest.raises(
        DamagedRunError, match=rf"{KEY} is damaged: it is not the receipt of source unit 2 of this plan"
    ):
        run.ledger.find(UNIT)


def test_a_changed_byte_of_a_receipt_is_found(run):
    run.do(UNIT)
    data = bytearray(run.storage.read(KEY))
    data[data.index(b"0.25")] = ord("1")
    run.storage.write(KEY, bytes(data))
    with pytest.raises(DamagedRunError, match=rf"{KEY} is damaged.*--repair"):
        list(run.ledger.receipts())


def test_a_ledger_of_another_plan_has_nothing_to_do_with_these(run):
    run.do(UNIT)
    other = Ledger(LocalStorage(run.storage.root), made_plan(transport={"method": "mean"}))
    with pytest.raises(DamagedRunError):
        other.find(UNIT)
