import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import act
from jobs.fit import fit
from pipeline.errors import DamagedRunError, LossError, OtherPlanError
from tests.jobs.runs import SOURCES, TARGETS, run, write_spec
from tests.models import tiny_llama
from tests.pipelines import tiny_flux, tiny_sdxl

IMAGES = {"steps": 2, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "run" / "steer" / "steer.safetensors")


def independent_means(model_folder: Path, texts: list[str], module: str) -> np.ndarray:
    """Mean over tokens of a module's output, one text at a time, without a line of ours."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows: list[np.ndarray] = []
    handle = model.get_submodule(module).register_forward_hook(
        lambda _, __, output: rows.append(output[0].double().mean(0).numpy())
    )
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([tokenizer(text)["input_ids"][:32]]))
    handle.remove()
    return np.stack(rows)


@pytest.mark.parametrize("method", ["mean", "linear"])
def test_the_fitted_maps_agree_with_an_independent_fit_on_the_same_texts(llama, tmp_path, method):
    run(tmp_path, {"kind": "causal-lm", "path": str(llama)}, transport={"method": method})
    module = "model.layers.1.post_attention_layernorm"
    a, b = (independent_means(llama, texts, module) for texts in (SOURCES, TARGETS))
    if method == "mean":
        scale = np.ones(a.shape[1])
    else:
        repeat = np.lcm(len(a), len(b))
        x, y = (np.sort(np.repeat(s, repeat // len(s), axis=0), axis=0) for s in (a - a.mean(0), b - b.mean(0)))
        scale = (x * y).sum(0) / (x * x).sum(0)
    found = tensors(tmp_path)
    np.testing.assert_allclose(found[f"{module}.scale"], scale, rtol=1e-4)
    np.testing.assert_allclose(found[f"{module}.shift"], b.mean(0) - scale * a.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[f"{module}.low"], a.min(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[f"{module}.high"], a.max(0), rtol=1e-4, atol=1e-6)


def test_the_steer_moves_the_model_it_was_fitted_on_and_leaves_it_as_it_was(llama, tmp_path):
    fitted = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = model(ids).logits
        with act.apply(act.load(tmp_path / "run" / "steer"), model, strength=1.0):
            steered = model(ids).logits
        after = model(ids).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before, steered, atol=1e-3)
    assert fitted.steer.card.source.num_prompts == len(SOURCES)
    assert fitted.steer.card.target.num_samples == len(TARGETS)


@pytest.mark.slow
def test_packing_and_unit_size_change_no_bit_and_the_same_spec_gives_the_same_steer(llama, tmp_path):
    model = {"kind": "causal-lm", "path": str(llama)}
    hashes = {
        name: run(tmp_path / name, model, **changes).steer.card.tensors
        for name, changes in {
            "one": {},
            "same": {},
            "small units": {"compute": {"unit_size": 3}},
            "small batches": {"compute": {"batch_tokens": 32}},
        }.items()
    }
    assert hashes["one"] == hashes["same"]
    assert hashes["one"] == hashes["small units"] == hashes["small batches"]


@pytest.mark.parametrize("pooling", ["max", "min", "median", "last", "all"])
def test_every_pooling_goes_through_the_store(llama, tmp_path, pooling):
    fitted = run(tmp_path, {"kind": "causal-lm", "path": str(llama)}, pooling=pooling, hookpoints="model.norm")
    lengths = [min(len(AutoTokenizer.from_pretrained(llama)(text)["input_ids"]), 32) for text in TARGETS]
    assert fitted.steer.card.target.num_samples == (sum(lengths) if pooling == "all" else len(TARGETS))
    if pooling == "all":
        model, tokenizer = AutoModelForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)
        rows: list[torch.Tensor] = []
        model.model.norm.register_forward_hook(lambda _, __, output: rows.append(output[0]))
        with torch.no_grad():
            for text in SOURCES:
                model(torch.tensor([tokenizer(text)["input_ids"][:32]]))
        low = torch.cat(rows).amin(0).numpy()
        np.testing.assert_allclose(tensors(tmp_path)["model.norm.low"], low, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "guidance"),
    [
        pytest.param(tiny_sdxl, 0.0, marks=pytest.mark.slow),
        (tiny_sdxl, 5.0),
        pytest.param(tiny_flux, 0.0, marks=pytest.mark.slow),
    ],
)
def test_text_to_image_goes_the_same_way(tmp_path, build, guidance):
    folder = build(tmp_path / "pipeline")
    model = {"kind": "text-to-image", "path": str(folder), "guidance": guidance, **IMAGES}
    fitted = run(tmp_path, model, hookpoints="blocks", source={"limit": 4}, target={"limit": 3})
    names = [site.hookpoint for site in fitted.plan.sites]
    assert {name.rpartition("@")[2] for name in names} == {"0", "1"}
    assert len(fitted.plan.timesteps) == 2
    assert set(act.load(tmp_path / "run" / "steer").maps) == set(names)


def test_a_finished_run_does_nothing_when_it_is_run_again(llama, tmp_path):
    first = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    stamps = {p: p.lstat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    again = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    assert again.steer.card == first.steer.card
    assert again.timings.prompts == len(SOURCES) + len(TARGETS)
    changed = {p.name for p in (tmp_path / "run").rglob("*") if p.lstat().st_mtime_ns != stamps.get(p)}
    assert changed == {"inputs.json"}, "the prompts were written again"


def test_a_finished_run_whose_inputs_are_as_they_were_is_known_without_reading_them(llama, tmp_path, monkeypatch):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    first = fit(spec, tmp_path / "run", tmp_path / "cache")
    stamps = {p: p.lstat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with monkeypatch.context() as blind:
        blind.setattr("jobs.hands.make_plan", None)
        again = fit(spec, tmp_path / "run", tmp_path / "cache")
    assert again.steer.card == first.steer.card
    assert {p: p.lstat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == stamps
    (tmp_path / "source.txt").write_text("another prompt\n")
    with pytest.raises(OtherPlanError, match="source"):
        fit(spec, tmp_path / "run", tmp_path / "cache")


def test_a_link_to_the_steer_that_is_gone_is_led_back_by_the_same_command(llama, tmp_path):
    first = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    (tmp_path / "run" / "steer").unlink()
    again = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    assert act.load(tmp_path / "run" / "steer").card == again.steer.card == first.steer.card
    assert again.timings == first.timings


def test_units_without_a_receipt_are_run_and_no_others(llama, tmp_path):
    first = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    folder = tmp_path / "run"
    (folder / "receipts" / "source" / "00000002.json").unlink()
    (folder / "activations.zarr" / "source" / "c" / "2" / "0").write_bytes(b"torn")
    (folder / "CURRENT").unlink()
    shutil.rmtree(folder / "steers")
    shards = {p: p.stat().st_mtime_ns for p in folder.glob("activations.zarr/*/c/*/0")}
    again = run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    assert again.steer.card.tensors == first.steer.card.tensors
    assert [p.parent.name for p, t in shards.items() if p.stat().st_mtime_ns != t] == ["2"]
    assert again.tally.num_units == 9
    assert again.receipts == first.receipts[:2] + again.receipts[2:3] + first.receipts[3:]


def test_a_flipped_byte_in_a_shard_is_found_before_it_is_used(llama, tmp_path):
    run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    folder = tmp_path / "run"
    (folder / "CURRENT").unlink()
    shard = folder / "activations.zarr" / "target" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedRunError, match=r"target/c/1/0 is damaged.*run the same command again with --repair"):
        run(tmp_path, {"kind": "causal-lm", "path": str(llama)})


def test_another_spec_on_the_same_folder_is_refused_and_says_what_differs(llama, tmp_path):
    run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    with pytest.raises(OtherPlanError, match=r"pooling was mean and is max"):
        run(tmp_path, {"kind": "causal-lm", "path": str(llama)}, pooling="max")


def test_empty_prompts_are_quarantined_by_row_and_the_others_keep_their_bits(llama, tmp_path):
    model = {"kind": "causal-lm", "path": str(llama)}
    write_spec(tmp_path, model)
    rows: list[dict[str, str | None]] = [{"text": text} for text in SOURCES]
    rows[5], rows[17] = {"text": ""}, {"text": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "rows.jsonl", "column": "text"}
    with pytest.raises(LossError, match=r"^1 prompt gave no activation, 0 are allowed: source row 5 \(empty"):
        run(tmp_path / "strict", model, source=source | {"path": str(tmp_path / "rows.jsonl")})
    fitted = run(
        tmp_path / "loose",
        model,
        source=source | {"path": str(tmp_path / "rows.jsonl")},
        failures={"quarantine_at_most": 0.1},
    )
    assert fitted.steer.card.source.num_quarantined == 2
    assert fitted.steer.card.source.num_samples == len(SOURCES) - 2
    (tmp_path / "kept.txt").write_text("".join(f"{t}\n" for n, t in enumerate(SOURCES) if n not in (5, 17)))
    without = run(tmp_path / "without", model, source={"path": str(tmp_path / "kept.txt")})
    assert without.steer.card.tensors == fitted.steer.card.tensors


def test_an_input_that_changes_after_planning_cannot_change_the_run(llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    first = fit(spec, tmp_path / "run", tmp_path / "cache")
    with (tmp_path / "source.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(OtherPlanError, match=r"source\.\w+ was"):
        fit(spec, tmp_path / "run", tmp_path / "cache")
    saved = (tmp_path / "run" / "steer" / "steer.safetensors").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == first.steer.card.tensors


def test_a_run_that_lost_too_much_stays_refused_when_it_is_run_again(llama, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "rows.txt").write_text("one\n\nthree\n")
    changes = {"source": {"path": str(tmp_path / "prompts")}}
    for _ in range(2):
        with pytest.raises(LossError, match="source row 1"):
            run(tmp_path, {"kind": "causal-lm", "path": str(llama)}, **changes)
    assert not (tmp_path / "run" / "steer").exists()


@pytest.mark.parametrize("damage", ["flip", "empty"])
def test_a_damaged_steer_of_a_run_is_named_with_what_to_do(llama, tmp_path, damage):
    run(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    steer = tmp_path / "run" / "steer"
    data = bytearray((steer / "steer.safetensors").read_bytes())
    data[-1] ^= 1
    (steer / "steer.safetensors").write_bytes(data)
    if damage == "empty":
        for path in steer.iterdir():
            path.unlink()
    with pytest.raises(DamagedRunError, match=r"run/(steers/\w+|CURRENT) is damaged.*same command again with --repair"):
        run(tmp_path, {"kind": "causal-lm", "path": str(llama)})


def test_the_cost_of_a_start_that_failed_counts(llama, tmp_path, monkeypatch):
    model = {"kind": "causal-lm", "path": str(llama)}
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.workers.InProcessWorkers.extract", _stops_after(3))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, model)
    resumed = run(tmp_path, model)
    assert resumed.timings.prompts == len(SOURCES) + len(TARGETS)
    assert resumed.timings.stages["extract"] > 0


def _stops_after(count: int):
    from pipeline.workers import InProcessWorkers

    whole = InProcessWorkers.extract

    def extract(self, units):
        for number, receipt in enumerate(whole(self, units), start=1):
            yield receipt
            if number == count:
                raise KeyboardInterrupt

    return extract
