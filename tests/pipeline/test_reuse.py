"""Runs that go on from other runs: units that were computed once, and the same bits as computing all anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import SameNameError
from jobs.fit import fit, fit_all
from jobs.start import Fitted
from pipeline import catalogue
from pipeline.errors import RunNotFoundError
from pipeline.extract import Extractor
from schemas.events import Event, Notice
from schemas.plan import Unit
from schemas.receipt import Receipt
from schemas.treatment import Treatment
from tests.jobs.runs import write_spec
from tests.models import tiny_llama

SOURCES = [f"The train to platform {n} is late again, says clerk number {n * 7 % 11}." for n in range(300)]
TARGETS = [f"♪ A song for {n} voices, played {'very ' * (n % 5)}softly." for n in range(300)]

#: A pilot is 256 prompts: units are smaller, so that the first alone decides the frames.
COMPUTE = {"unit_size": 16, "batch_tokens": 512, "max_tokens": 16}
SKETCH = {"law": {"kind": "sketch"}, "hookpoints": "model.norm"}

Go = Callable[..., Fitted]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, str]:
    return {"kind": "causal-lm", "path": str(tiny_llama(tmp_path_factory.mktemp("model") / "llama"))}


@pytest.fixture
def ran(monkeypatch) -> list[Unit]:
    """The units that went through the model."""
    units: list[Unit] = []
    extract = Extractor._extract

    def counted(self: Extractor, unit: Unit, treatment: Treatment) -> Receipt:
        units.append(unit)
        return extract(self, unit, treatment)

    monkeypatch.setattr(Extractor, "_extract", counted)
    return units


def written(folder: Path, model: dict[str, str], source: Sequence[str], target: Sequence[str], **changes: Any) -> Path:
    """Writes prompts and a spec of them into a folder."""
    spec = write_spec(folder, model, **({"compute": COMPUTE} | SKETCH | changes))
    (folder / "source.txt").write_text("\n".join(source) + "\n")
    (folder / "target.txt").write_text("\n".join(target) + "\n")
    return spec


@pytest.fixture
def go(model, tmp_path) -> Go:
    def go(
        name: str, source: Sequence[str], target: Sequence[str], told: list[Event] | None = None, **changes: Any
    ) -> Fitted:
        spec = written(tmp_path / name, model, source, target, **changes)
        return fit(spec, tmp_path / name / "run", tmp_path / "cache", (told if told is not None else []).append)

    return go


@pytest.fixture(scope="module")
def earlier(model, tmp_path_factory) -> str:
    """A finished run of 70 and 60 prompts: four and three full units, and a part of one on either side."""
    folder = tmp_path_factory.mktemp("earlier")
    spec = written(folder, model, SOURCES[:70], TARGETS[:60])
    fit(spec, folder / "run", folder / "cache")
    return str(folder / "run")


def names(units: Sequence[Unit]) -> list[str]:
    return [str(unit) for unit in units]


def test_appended_prompts_cost_their_own_units_and_give_the_bits_of_starting_over(earlier, go, ran):
    grown = go("grown", SOURCES[:100], TARGETS[:60], extends=earlier)
    assert names(ran) == [f"source unit {n}" for n in (4, 5, 6)]
    fresh = go("fresh", SOURCES[:100], TARGETS[:60])
    assert grown.plan.fingerprint == fresh.plan.fingerprint
    assert grown.steer.card.tensors == fresh.steer.card.tensors
    taken = [receipt for receipt in grown.receipts if receipt.origin]
    assert len(taken) == 8
    assert {receipt.plan for receipt in grown.receipts} == {grown.plan.fingerprint}
    assert sum(receipt.num_prompts for receipt in grown.receipts) == 160


@pytest.mark.slow
def test_a_run_that_grew_grows_again_and_remembers_who_computed_what(earlier, go, ran):
    once = go("once", SOURCES[:80], TARGETS[:60], extends=earlier)
    twice = go("twice", SOURCES[:100], TARGETS[:70], extends=once.storage.uri)
    first = {receipt.origin for receipt in once.receipts if receipt.origin}
    assert len(first) == 1
    assert [receipt.origin for receipt in twice.receipts if receipt.side == "source"][:4] == 4 * list(first)
    fresh = go("fresh", SOURCES[:100], TARGETS[:70])
    assert twice.steer.card.tensors == fresh.steer.card.tensors


@pytest.mark.slow
def test_a_run_that_merged_its_sketches_away_grows_to_the_same_bits(go, ran):
    small = {"store": {"activations": "none", "sketches": "merged"}}
    merged = go("merged", SOURCES[:70], TARGETS[:60], **small)
    assert not [key for key in merged.storage.keys("sketches.zarr/source/c") if key < "sketches.zarr/source/c/4"]
    ran.clear()
    grown = go("grown", SOURCES[:100], TARGETS[:60], extends=merged.storage.uri, **small)
    assert names(ran) == [f"source unit {n}" for n in (4, 5, 6)]
    assert grown.steer.card.tensors == go("fresh", SOURCES[:100], TARGETS[:60]).steer.card.tensors


@pytest.mark.slow
def test_laws_that_outgrow_their_values_are_counted_from_stored_activations(go, ran):
    exact = go("exact", SOURCES[:70], TARGETS[:60], law={"kind": "exact"})
    ran.clear()
    grown = go("grown", SOURCES[:80], TARGETS[:60], extends=exact.storage.uri)
    assert names(ran) == ["source unit 4"]
    assert grown.steer.card.tensors == go("fresh", SOURCES[:80], TARGETS[:60]).steer.card.tensors


@pytest.mark.slow
def test_a_removed_prompt_costs_its_unit_and_counts_nowhere(earlier, go, ran):
    # Not one of the first 256: those decide the frame, and with it every unit; here unit 0 alone has some.
    told: list[Event] = []
    source = SOURCES[:37] + SOURCES[38:70]
    removed = go("removed", source, TARGETS[:60], told, extends=earlier)
    assert names(ran) == ["source unit 2"]
    side = removed.steer.card.source
    assert (side.num_prompts, side.num_removed, side.num_samples, side.num_quarantined) == (70, 1, 69, 0)
    values = go("values", source, TARGETS[:60], law={"kind": "exact"})
    # The law is that of the prompts which are left: extremes are exact, whatever sketches round.
    name = removed.plan.sites[0].hookpoint
    assert (removed.steer.maps[name].low == values.steer.maps[name].low).all()


@pytest.mark.slow
def test_a_removed_prompt_that_decided_frames_costs_the_units_whose_tokens_count(earlier, go, ran):
    go("removed", SOURCES[1:70], TARGETS[:60], extends=earlier)
    # Pooled samples are counted anew from stored activations, tokens are not stored: those of the first 1,024 prompts.
    assert names(ran) == [f"source unit {n}" for n in range(5)]


@pytest.mark.slow
def test_a_run_that_was_computed_otherwise_is_not_used_and_the_user_is_told_why(earlier, go, ran):
    told: list[Event] = []
    other = go("other", SOURCES[:70], TARGETS[:60], told, extends=earlier, pooling="max")
    assert len(ran) == other.tally.num_units
    (notice,) = [event.sentence for event in told if isinstance(event, Notice) and "again" in event.sentence]
    assert notice == f"no unit of {earlier} can be used again: spec.pooling was mean and is max"


@pytest.mark.slow
def test_a_run_to_go_on_from_has_to_be_there_until_the_new_one_has_begun(go, tmp_path):
    with pytest.raises(RunNotFoundError, match=r"no run at .*nowhere"):
        go("lost", SOURCES[:70], TARGETS[:60], extends=str(tmp_path / "nowhere"))
    assert not (tmp_path / "lost" / "run").exists()
    base = go("base", SOURCES[:40], TARGETS[:40], law={"kind": "exact"})
    removed = SOURCES[:20] + SOURCES[21:40]
    grown = go("grown", removed, TARGETS[:40], extends=base.storage.uri, law={"kind": "exact"})
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    again = go("grown", removed, TARGETS[:40], extends=base.storage.uri, law={"kind": "exact"})
    assert again.plan.fingerprint == grown.plan.fingerprint


def test_a_damaged_unit_of_the_earlier_run_is_computed_and_the_user_is_told(go, ran):
    damaged = go("damaged", SOURCES[:40], TARGETS[:40])
    key = damaged.storage.keys("activations.zarr/source/c")[0]
    data = bytearray(damaged.storage.read(key))
    data[1000] ^= 1
    damaged.storage.write(key, bytes(data))
    ran.clear()
    told: list[Event] = []
    grown = go("on", SOURCES[:40], TARGETS[:40], told, extends=damaged.storage.uri)
    assert names(ran) == ["source unit 0"]
    assert grown.steer.card.tensors == damaged.steer.card.tensors
    assert [event for event in told if isinstance(event, Notice) and f"{key} is damaged" in event.sentence]


@pytest.mark.slow
def test_a_side_whose_law_is_in_the_catalogue_is_not_run_again(go, ran, tmp_path):
    laws = {"store": {"laws": str(tmp_path / "laws")}}
    go("first", SOURCES[:50], TARGETS[:40], **laws)
    ran.clear()
    second = go("second", SOURCES[:50], TARGETS[40:90], **laws)
    assert {unit.side for unit in ran} == {"target"}
    assert second.steer.card.tensors == go("alone", SOURCES[:50], TARGETS[40:90]).steer.card.tensors
    ran.clear()
    go("third", SOURCES[:50], TARGETS[:40], **laws)
    assert not ran, "both sides are there"


@pytest.mark.slow
def test_exact_laws_are_values_too(go, ran, tmp_path):
    changes = {"store": {"laws": str(tmp_path / "laws")}, "law": {"kind": "exact"}}
    go("first", SOURCES[:50], TARGETS[:40], **changes)
    ran.clear()
    second = go("second", SOURCES[:50], TARGETS[:40], transport={"method": "mean"}, **changes)
    assert not ran
    alone = go("alone", SOURCES[:50], TARGETS[:40], transport={"method": "mean"}, law={"kind": "exact"})
    assert second.steer.card.tensors == alone.steer.card.tensors


@pytest.mark.slow
def test_an_entry_of_the_catalogue_that_is_not_whole_is_none_and_a_damaged_one_is_made_anew(go, ran, tmp_path):
    laws = {"store": {"laws": str(tmp_path / "laws")}}
    first = go("first", SOURCES[:50], TARGETS[:40], **laws)
    entry = tmp_path / "laws" / first.plan.side_key("source")
    (entry / "side.json").rename(entry / "elsewhere")
    ran.clear()
    go("second", SOURCES[:50], TARGETS[40:90], **laws)
    assert {unit.side for unit in ran} == {"source", "target"}
    for fold in entry.glob("*/folds/source/*/c/0/0"):
        fold.write_bytes(fold.read_bytes()[:-1] + b"!")
    ran.clear()
    third = go("third", SOURCES[:50], TARGETS[90:120], **laws)
    assert {unit.side for unit in ran} == {"source", "target"}, "it is computed again, and the entry is made anew"
    ran.clear()
    go("fourth", SOURCES[:50], TARGETS[90:120], **laws)
    assert not ran
    assert third.steer.card.tensors == go("alone", SOURCES[:50], TARGETS[90:120]).steer.card.tensors


@pytest.mark.slow
def test_runs_that_add_one_side_at_once_do_not_mix(go, ran, tmp_path, monkeypatch):
    laws = {"store": {"laws": str(tmp_path / "laws")}}
    copy = catalogue._copy
    calls: list[None] = []

    def slow(*arguments: Any) -> None:
        calls.append(copy(*arguments))
        if len(calls) == 1:  # another run adds the same side before this one's entry is there
            go("other", SOURCES[:50], TARGETS[40:80], **laws)

    monkeypatch.setattr(catalogue, "_copy", slow)
    go("first", SOURCES[:50], TARGETS[:40], **laws)
    ran.clear()
    third = go("third", SOURCES[:50], TARGETS[80:120], **laws)
    assert {unit.side for unit in ran} == {"target"}
    assert third.steer.card.tensors == go("alone", SOURCES[:50], TARGETS[80:120]).steer.card.tensors


@pytest.mark.slow
def test_many_steers_against_one_side_are_one_command_and_run_it_once(model, ran, tmp_path):
    specs = []
    for number in range(5):
        spec = written(tmp_path / f"spec{number}", model, SOURCES[:32], TARGETS[16 * number :][:16])
        spec.write_text(yaml.safe_dump(yaml.safe_load(spec.read_text()) | {"name": f"concept-{number}"}))
        specs.append(spec)
    done = list(fit_all(specs, tmp_path / "runs", tmp_path / "cache"))
    assert [fitted.storage.uri for fitted in done] == [str(tmp_path / "runs" / f"concept-{n}") for n in range(5)]
    assert len(ran) == 2 + 5
    alone = fit(specs[3], tmp_path / "alone", tmp_path / "cache")
    assert done[3].steer.card.tensors == alone.steer.card.tensors
    with pytest.raises(SameNameError, match="2 specs of the name 'concept-0'"):
        list(fit_all([specs[0], written_twin(specs[0])], tmp_path / "more", tmp_path / "cache"))


def written_twin(spec: Path) -> Path:
    twin = spec.with_name("twin.yaml")
    twin.write_text(spec.read_text())
    return twin
