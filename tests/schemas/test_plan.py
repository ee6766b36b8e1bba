import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import record
from schemas.plan import SIDES, TOKEN_PROMPTS, Law, Memory, ModelFacts, Numerics, Plan, SideFacts, Site, Unit

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "less-toxic",
    "model": {"kind": "causal-lm", "path": "models/tiny", "dtype": "float32", "gguf_file": None, "revision": None},
    "source": {"path": "a.txt"},
    "target": {"path": "b.txt"},
    "hookpoints": "layernorms",
    "template": "plain",
    "pooling": "mean",
    "estimation": "simultaneous",
    "transport": {"method": "linear", "support": "observed"},
    "compute": {"workers": 2, "address": "local", "max_tokens": 128, "unit_size": 4, "batch_tokens": 512},
    "store": {"activations": "all", "sketches": "units", "quota": 1 << 30, "laws": None},
    "failures": {"quarantine_at_most": 0.001, "attempts": 3, "deadline": None, "lease": 30.0},
    "extends": None,
}
PLAN = Plan(
    version=1,
    spec=SPEC,
    model=ModelFacts("causal-lm", "f" * 64, 100, 400),
    location="cache/tiny",
    numerics=Numerics("cpu", "float32", 1, "sdpa", "AVX2", {"torch": "2.13.0"}),
    sites=(Site("a", "LayerNorm", 3), Site("b:1", "Attention", 5)),
    timesteps=(),
    source=SideFacts(10, "s" * 64),
    target=SideFacts(8, "t" * 64),
    rows_per_prompt=1,
    law={"source": Law("sketch", 5), "target": Law("sketch", 5)},
    memory=Memory(weights=400, forward=50, block=32, sketch=64, reducer=96, available=1 << 30),
    disk=5000,
    sketch_disk=700,
)


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The tree with one leaf changed."""
    head, _, rest = path.partition(".")
    return tree | {head: put(tree[head], rest, value) if rest else value}


def with_spec(path: str, value: Any) -> Plan:
    return dataclasses.replace(PLAN, spec=put(SPEC, path, value))


def with_laws(source: Law, target: Law) -> Plan:
    return dataclasses.replace(PLAN, law={"source": source, "target": target})


EXACT = with_laws(Law("exact", 5), Law("exact", 5))


@pytest.mark.parametrize(
    "changed",
    [
        with_spec("template", "chat"),
        with_spec("pooling", "max"),
        with_spec("estimation", "sequential"),
        with_spec("transport.method", "mean"),
        with_spec("transport.support", [1.0, 99.0]),
        with_spec("compute.max_tokens", 64),
        with_spec("compute.unit_size", 5),
        with_spec("compute.batch_tokens", 256),
        with_spec("model.dtype", "bfloat16"),
        dataclasses.replace(PLAN, model=dataclasses.replace(PLAN.model, fingerprint="0" * 64)),
        dataclasses.replace(PLAN, numerics=dataclasses.replace(PLAN.numerics, threads=2)),
        dataclasses.replace(PLAN, numerics=dataclasses.replace(PLAN.numerics, versions={"torch": "2.12.0"})),
        dataclasses.replace(PLAN, sites=PLAN.sites[::-1]),
        dataclasses.replace(PLAN, timesteps=(999.0,)),
        dataclasses.replace(PLAN, source=SideFacts(9, "s" * 64)),
        dataclasses.replace(PLAN, target=SideFacts(8, "u" * 64)),
        dataclasses.replace(PLAN, rows_per_prompt=128),
        dataclasses.replace(PLAN, source=SideFacts(10, "s" * 64, num_removed=1)),
        EXACT,
        with_laws(Law("sketch", 6), Law("sketch", 5)),
        with_laws(Law("sketch", 5), Law("exact", 5)),
        with_laws(Law("sketch", 5, "mend"), Law("sketch", 5)),
    ],
)
def test_what_changes_the_numbers_changes_the_fingerprint(changed: Plan) -> None:
    assert changed.fingerprint != PLAN.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        with_spec("name", "other"),
        with_spec("model.path", "elsewhere/tiny"),
        with_spec("model.revision", "main"),
        with_spec("source.path", "moved/a.txt"),
        with_spec("compute.workers", 0),
        with_spec("compute.address", "auto"),
        with_spec("store.quota", 1 << 40),
        with_spec("store.sketches", "merged"),
        with_spec("store.laws", "s3://laws"),
        with_spec("failures.quarantine_at_most", 0.5),
        with_spec("failures.attempts", 1),
        with_spec("failures.deadline", 60.0),
        with_spec("failures.lease", 5.0),
        with_spec("extends", "runs/earlier"),
        dataclasses.replace(PLAN, location="elsewhere"),
        with_spec("store.activations", "none"),
        dataclasses.replace(PLAN, memory=Memory(1, 2, 3, 4, 5, 6)),
        dataclasses.replace(PLAN, disk=1),
        dataclasses.replace(PLAN, sketch_disk=1),
    ],
)
def test_names_places_workers_and_budgets_do_not_change_the_fingerprint(changed: Plan) -> None:
    assert changed != PLAN
    assert changed.fingerprint == PLAN.fingerprint


def test_a_plan_read_back_has_the_same_fingerprint() -> None:
    again = record.unseal(Plan, record.seal(PLAN))
    assert again == PLAN
    assert again.fingerprint == PLAN.fingerprint
    assert len(again.fingerprint) == 64


def test_the_fingerprint_is_not_written_down() -> None:
    before = record.dump(PLAN)
    assert PLAN.fingerprint.encode() not in before
    assert record.dump(PLAN) == before


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45))
def test_units_hold_each_prompt_of_each_side_once(num_source: int, num_target: int, unit_size: int) -> None:
    plan = dataclasses.replace(
        with_spec("compute.unit_size", unit_size), source=SideFacts(num_source, ""), target=SideFacts(num_target, "")
    )
    units = list(plan.units())
    for name in SIDES:
        mine = [unit for unit in units if unit.side == name]
        assert [unit.index for unit in mine] == list(range(len(mine)))
        assert [row for unit in mine for row in range(unit.start, unit.stop)] == list(
            range(plan.side(name).num_prompts)
        )
        assert all(unit.num_prompts == unit_size for unit in mine[:-1])
    assert [unit.side for unit in units] == sorted(unit.side for unit in units)
    assert sum(unit.num_prompts for unit in units) == plan.num_prompts


def test_units_say_what_they_are() -> None:
    assert [str(unit) for unit in PLAN.units()] == [
        "source unit 0", "source unit 1", "source unit 2", "target unit 0", "target unit 1",
    ]  # fmt: skip


def test_columns_stand_side_by_side_in_the_order_of_the_sites() -> None:
    assert PLAN.columns == {"a": slice(0, 3), "b:1": slice(3, 8)}
    assert PLAN.width == 8


def test_the_memory_of_a_worker_counts_a_block_twice_and_its_sketches() -> None:
    assert PLAN.memory.worker == 400 + 50 + 2 * 32 + 64


@pytest.mark.parametrize("kept", ["all", "sample", "none"])
def test_a_side_with_an_exact_law_keeps_its_activations_whatever_the_spec_says(kept: str) -> None:
    plan = with_spec("store.activations", kept)
    assert [plan.kept(side) for side in SIDES] == [kept, kept]
    mixed = dataclasses.replace(plan, law={"source": Law("exact", 5), "target": Law("sketch", 5)})
    assert [mixed.kept(side) for side in SIDES] == ["all", kept]


def test_sketches_of_units_go_where_only_merged_ones_are_kept() -> None:
    assert not PLAN.compacts
    assert with_spec("store.sketches", "merged").compacts


def test_a_plan_is_sketched_if_a_side_is() -> None:
    assert [PLAN.sketched, EXACT.sketched] == [True, False]
    assert with_laws(Law("exact", 5), Law("sketch", 5)).sketched


def test_the_key_of_a_side_names_all_that_decides_its_law_and_nothing_of_the_other_side() -> None:
    other = dataclasses.replace(
        PLAN, target=SideFacts(7, "u" * 64), law={"source": Law("sketch", 5), "target": Law("exact", 6)}
    )
    assert other.side_key("source") == PLAN.side_key("source") != PLAN.side_key("target") != other.side_key("target")
    assert with_spec("transport.method", "mean").side_key("source") == PLAN.side_key("source")
    for changed in (
        with_spec("pooling", "max"),
        with_spec("compute.unit_size", 5),
        with_spec("model.dtype", "bfloat16"),
        dataclasses.replace(PLAN, sites=PLAN.sites[::-1]),
        dataclasses.replace(PLAN, source=SideFacts(10, "x" * 64)),
        with_laws(Law("sketch", 6), Law("sketch", 5)),
    ):
        assert changed.side_key("source") != PLAN.side_key("source")


def test_the_key_of_units_is_that_of_the_side_without_its_prompts() -> None:
    grown = dataclasses.replace(PLAN, source=SideFacts(12, "x" * 64))
    assert grown.unit_key("source") == PLAN.unit_key("source")
    assert grown.side_key("source") != PLAN.side_key("source")


def test_support_of_tokens_changes_the_source_alone() -> None:
    tokens = with_spec("transport.support", "tokens")
    assert tokens.unit_key("source") != PLAN.unit_key("source")
    assert tokens.unit_key("target") == PLAN.unit_key("target")


def test_the_tokens_of_early_source_units_are_sketched_and_with_that_support_those_of_all() -> None:
    early, late = Unit("source", 0, 0, 4), Unit("source", TOKEN_PROMPTS, TOKEN_PROMPTS, TOKEN_PROMPTS + 4)
    target = Unit("target", 0, 0, 4)
    everywhere = with_spec("transport.support", "tokens")
    assert [PLAN.sketches("tokens", unit) for unit in (early, late, target)] == [True, False, False]
    assert [everywhere.sketches("tokens", unit) for unit in (early, late, target)] == [True, True, False]
    assert [PLAN.sketches("source", unit) for unit in (early, late, target)] == [True, True, False]
    assert [EXACT.sketches(law, early) for law in ("source", "target", "tokens")] == [False, False, True]


def test_tokens_are_counted_in_wider_cells() -> None:
    assert [PLAN.precision(law) for law in ("source", "target", "tokens")] == [5, 5, 3]
    coarse = with_laws(Law("sketch", 2), Law("sketch", 5))
    assert [coarse.precision(law) for law in ("source", "target", "tokens")] == [2, 5, 2]
