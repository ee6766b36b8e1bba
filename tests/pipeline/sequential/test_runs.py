"""Sequential runs: the maps of a fit in memory, the same bits however the run went, and what goes wrong on the way."""

import dataclasses
import json
import shutil
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

import act
from act.fit import Batch
from act.lockstep.spill import Spill
from act.steer import load
from jobs.fit import fit, plan
from jobs.replay import replay
from jobs.start import Fitted
from jobs.status import status
from pipeline.errors import (
    DamagedRunError,
    FormerSteerError,
    LockstepPlanError,
    LossError,
    NothingLeftError,
    OtherPlanError,
)
from pipeline.extract import Extractor
from pipeline.forward import Forward
from pipeline.models.causal_lm import CausalLMCheckpoint, CausalLMModel
from pipeline.plan import packing_rule, read_plan
from pipeline.sequential.part import Part
from pipeline.sequential.site_maps import SiteMaps, same_map, transport_of
from pipeline.sequential.stepper import Stepper
from pipeline.storage import LocalStorage
from pipeline.verify import verify
from schemas import record
from schemas.document import SpecError
from schemas.events import Notice
from schemas.plan import SIDES, Plan
from schemas.site_map import SiteMap
from tests.jobs.runs import SOURCES, TARGETS, run, write_spec
from tests.models import tiny_llama
from tests.pipelines import tiny_flux, tiny_sdxl

KIB = 1 << 10

#: A sign whose bytes occur in no other prompt.
MARK = "\U00100000"
MARK_TOKEN = 179

SEQUENTIAL = {"estimation": "sequential"}
SKETCH = SEQUENTIAL | {"law": {"kind": "sketch"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, str]:
    return {"kind": "causal-lm", "path": str(tiny_llama(tmp_path_factory.mktemp("model") / "llama"))}


@pytest.fixture(scope="module")
def exact(model, tmp_path_factory) -> Path:
    """A finished sequential run with exact laws."""
    folder = tmp_path_factory.mktemp("exact")
    run(folder, model, **SEQUENTIAL)
    return folder / "run"


@pytest.fixture(scope="module")
def sketched(model, tmp_path_factory) -> Path:
    """The same with sketches."""
    folder = tmp_path_factory.mktemp("sketched")
    run(folder, model, **SKETCH)
    return folder / "run"


def tensors(root: Path) -> bytes:
    return (root / "steer" / "steer.safetensors").read_bytes()


def again(root: Path, tmp_path: Path) -> Fitted:
    """Runs the command of a copied run again."""
    return fit(tmp_path / "spec.yaml", tmp_path / "run", tmp_path / "cache")


@pytest.fixture
def copied(tmp_path):
    """Returns a copy of a run, its spec beside it."""

    def copy(root: Path) -> Path:
        shutil.copytree(root.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
        return tmp_path / "run"

    return copy


def batches(root: Path) -> tuple[list[Batch], list[Batch]]:
    """The micro-batches of each side of a run, as a module takes them."""
    planned = read_plan(LocalStorage(root))
    extractor = Extractor(planned, str(root))
    packed = {
        side: [
            batch.inputs
            for unit in planned.units()
            if unit.side == side
            for batch in extractor.forward.model.pack(
                extractor.prompts(unit), unit.start, packing_rule(planned.spec)
            ).batches
        ]
        for side in SIDES
    }
    return packed["source"], packed["target"]


def test_the_maps_are_those_of_a_sequential_fit_in_memory(exact):
    """Which agrees with running the prefix again before every site: tests/act/lockstep."""
    steer, module = load(exact / "steer"), Forward(read_plan(LocalStorage(exact))).model.root
    source, target = batches(exact)
    wanted = act.fit_steer(module, source, target, estimation="sequential")
    other = act.fit_steer(module, source, target)
    assert list(steer.maps) == list(wanted.maps)
    for name, one in steer.maps.items():
        assert torch.equal(one.scale, wanted.maps[name].scale)
        assert torch.equal(one.shift, wanted.maps[name].shift)
        assert torch.equal(one.low, wanted.maps[name].low)
    last = list(steer.maps)[-1]
    assert not torch.equal(other.maps[last].shift, steer.maps[last].shift)
    assert steer.card.estimation == "sequential"
    assert steer.card.source.num_samples == len(SOURCES)


@pytest.mark.parametrize("kind", ["exact", "sketched"])
def test_the_maps_of_the_laws_that_are_stored_are_those_that_moved_the_source(request, kind):
    root = request.getfixturevalue(kind)
    planned, steer = read_plan(LocalStorage(root)), load(root / "steer")
    first = json.loads((root / "sequential/00000000.json").read_text())
    known = SiteMaps(LocalStorage(root), planned).known(first["treated"])
    assert len(known) == len(planned.sites) == 5
    for site, one in zip(planned.sites, known, strict=True):
        assert same_map(transport_of(one), steer.maps[site.hookpoint])


@pytest.mark.slow
def test_blocks_of_one_site_give_the_same_bits_and_one_block_is_simultaneous(model, exact, tmp_path):
    planned = read_plan(LocalStorage(exact))
    alone = run(tmp_path / "alone", model, estimation={"kind": "sequential", "blocks": len(planned.sites)})
    for name, one in load(exact / "steer").maps.items():
        assert same_map(one, alone.steer.maps[name])
    whole = run(tmp_path / "whole", model, estimation={"kind": "sequential", "blocks": 1})
    simultaneous = run(tmp_path / "simultaneous", model)
    for name, one in simultaneous.steer.maps.items():
        assert same_map(one, whole.steer.maps[name])


@pytest.mark.parametrize(
    ("blocks", "law"), [(2, "exact"), pytest.param(3, "exact", marks=pytest.mark.slow), (3, "sketch")]
)
def test_each_block_is_fitted_and_stored_on_what_the_blocks_before_have_moved(model, exact, tmp_path, blocks, law):
    """In memory each block is a pass of its own too; here a run also goes on in the midst of them."""
    how: dict[str, Any] = {"estimation": {"kind": "sequential", "blocks": blocks}, "law": {"kind": law}}
    steer = run(tmp_path, model, **how).steer
    if law == "exact":
        module, (source, target) = Forward(read_plan(LocalStorage(exact))).model.root, batches(exact)
        wanted = act.fit_steer(module, source, target, estimation=act.Sequential(blocks=blocks))
        for name, one in steer.maps.items():
            assert same_map(one, wanted.maps[name])
    whole, here = tensors(tmp_path / "run"), tmp_path / "run"
    assert list(verify(LocalStorage(here))) == []
    for number in (4, 3, 2):
        (here / f"sequential/{number:08d}.json").unlink()
    shutil.rmtree(here / "steers")
    shutil.rmtree(here / "receipts/source")
    for name in ("CURRENT", "steer"):
        (here / name).unlink()
    assert again(here, tmp_path).steer.card.estimation == f"sequential in {blocks} blocks"
    assert tensors(here) == whole
    assert list(verify(LocalStorage(here))) == []


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("site", [0, 2, 4])
def test_blocks_with_a_former_steer_give_what_they_give_in_memory(model, exact, tmp_path, blocks, site):
    name = list(load(exact / "steer").maps)[site]
    former = run(tmp_path / "former", model, hookpoints=[name]).steer
    how = {"kind": "sequential", "blocks": blocks, "start": str(tmp_path / "former/run/steer")}
    steer = run(tmp_path, model, estimation=how).steer
    module, (source, target) = Forward(read_plan(LocalStorage(exact))).model.root, batches(exact)
    wanted = act.fit_steer(module, source, target, estimation=act.Sequential(blocks=blocks, start=former))
    for name, one in steer.maps.items():
        assert same_map(one, wanted.maps[name])


def started(steer: Path, **changes: Any) -> dict[str, Any]:
    """What makes a run start from a steer."""
    return SEQUENTIAL | changes | {"estimation": {"kind": "sequential", "start": str(steer)}}


@pytest.mark.parametrize("kind", ["exact", pytest.param("sketched", marks=pytest.mark.slow)])
def test_a_run_that_starts_from_the_first_sites_of_another_gives_its_bits(model, request, tmp_path, kind):
    """What is fitted on what the former maps move is what a fit of all sites gives there."""
    root, law = request.getfixturevalue(kind), {} if kind == "exact" else {"law": {"kind": "sketch"}}
    whole = load(root / "steer")
    names = list(whole.maps)
    first = run(tmp_path / "first", model, hookpoints=names[:2], **SEQUENTIAL | law)
    rest = run(tmp_path / "rest", model, **started(tmp_path / "first/run/steer", **law))
    assert rest.steer.card.estimation == "sequential, from a former steer"
    assert rest.steer.card.sites[0] == first.steer.card.sites[0]
    assert tensors(tmp_path / "rest/run") == tensors(root)
    assert list(verify(LocalStorage(tmp_path / "rest/run"))) == []
    replay(tmp_path / "rest/run/steer", tmp_path / "rest", None, tmp_path / "cache")


@pytest.mark.slow
def test_maps_that_are_taken_over_are_not_fitted_on_what_comes(model, exact, tmp_path):
    """The former steer was fitted the other way round."""
    sides = {"source": {"path": "target.txt"}, "target": {"path": "source.txt"}}
    former = run(tmp_path / "former", model, hookpoints=["model.norm"], **sides).steer
    steer = run(tmp_path / "rest", model, **started(tmp_path / "former/run/steer")).steer
    for name, one in load(exact / "steer").maps.items():
        assert same_map(steer.maps[name], former.maps[name] if name == "model.norm" else one)
        assert same_map(steer.maps[name], one) == (name != "model.norm")


@pytest.mark.slow
def test_a_damaged_copy_of_the_former_steer_is_named_and_copied_again(model, exact, tmp_path):
    here = tmp_path / "run"
    run(tmp_path, model, **started(exact / "steer"))
    path = here / "former/steer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert [(one.key, one.kind) for one in verify(LocalStorage(here))] == [("former/steer.safetensors", "former")]
    fit(tmp_path / "spec.yaml", here, tmp_path / "cache", damage="repair")
    assert path.read_bytes() == (exact / "steer/steer.safetensors").read_bytes()
    assert list(verify(LocalStorage(here))) == []


@pytest.mark.slow
def test_another_steer_in_the_place_of_the_former_one_is_another_plan(model, exact, sketched, tmp_path):
    shutil.copytree(exact / "steer", tmp_path / "former")
    run(tmp_path, model, **started(Path("former")))
    shutil.rmtree(tmp_path / "former")
    shutil.copytree(sketched / "steer", tmp_path / "former")
    with pytest.raises(OtherPlanError):
        again(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hookpoints": ["model.norm"]}, "found the site .* wanted one whose sites are all among the hookpoints"),
        ({"transport": {"method": "quantile"}}, "found maps of the method linear in .*; wanted quantile maps for"),
    ],
)
def test_a_steer_that_does_not_go_with_the_job_is_refused(model, exact, tmp_path, changes, problem):
    write_spec(tmp_path, model, **changes, **started(exact / "steer"))
    with pytest.raises(FormerSteerError, match=problem):
        plan(tmp_path / "spec.yaml", tmp_path / "cache")


@pytest.mark.slow
def test_a_former_steer_that_is_gone_is_that_of_the_run(model, exact, tmp_path):
    shutil.copytree(exact / "steer", tmp_path / "former")
    (tmp_path / "former/README.md").unlink()
    run(tmp_path, model, **started(Path("former")))
    here = tmp_path / "run"
    shutil.rmtree(tmp_path / "former")
    lost = here / "receipts/source/00000001.json"
    lost.unlink()
    again(here, tmp_path)
    assert lost.exists()
    assert list(verify(LocalStorage(here))) == []


def test_a_plan_from_before_there_was_a_start_is_read(exact):
    data = (exact / "plan.json").read_bytes()
    assert b'"start"' not in data
    planned = record.unseal(Plan, data)
    assert planned.start == ""
    assert b'"start": "ab"' in record.seal(dataclasses.replace(planned, start="ab"))


def test_a_steer_of_other_weights_or_none_is_refused(exact, tmp_path):
    other = {"kind": "causal-lm", "path": str(tiny_llama(tmp_path / "llama", seed=1))}
    write_spec(tmp_path, other, **started(exact / "steer"))
    with pytest.raises(FormerSteerError, match="found the model files"):
        plan(tmp_path / "spec.yaml", tmp_path / "cache")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("nowhere", "loop", "x" * 5000, "source.txt", "s3://bucket/steer"):
        write_spec(tmp_path, other, estimation={"kind": "sequential", "start": place})
        with pytest.raises(FormerSteerError, match="wanted a folder"):
            plan(tmp_path / "spec.yaml", tmp_path / "cache")


def test_a_start_belongs_to_a_sequential_fit(model, tmp_path):
    write_spec(tmp_path, model, estimation={"kind": "simultaneous", "start": "steer"})
    with pytest.raises(SpecError, match="no start with 'kind: simultaneous'"):
        plan(tmp_path / "spec.yaml", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["exact", pytest.param("sketched", marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_known", [pytest.param(0, marks=pytest.mark.slow), 1, 4, 5])
def test_a_run_goes_on_at_the_last_site_that_was_fitted(request, copied, tmp_path, monkeypatch, kind, num_known):
    """What a driver leaves that died: some maps, and receipts of the target, or of all but one unit."""
    root = request.getfixturevalue(kind)
    here = copied(root)
    for path in sorted((here / "sequential").glob("*.json"))[num_known:]:
        path.unlink()
    shutil.rmtree(here / "steers")
    for name in ("CURRENT", "steer"):
        (here / name).unlink()
    lost = sorted((here / "receipts/source").glob("*.json"))
    for path in lost if num_known < 5 else lost[1:2]:
        path.unlink()
    fitted, steps = list[int](), Stepper.fit

    def noting(stepper: Stepper, treated: str, site: int, *parts: Part) -> SiteMap:
        fitted.append(site)
        return steps(stepper, treated, site, *parts)

    monkeypatch.setattr(Stepper, "fit", noting)
    assert (status(here).sites_fitted, status(here).sites) == (num_known, 5)
    again(here, tmp_path)
    assert fitted == list(range(num_known, 5))
    assert tensors(here) == tensors(root)


def test_a_prompt_whose_activation_is_not_finite_counts_nowhere(model, tmp_path, monkeypatch):
    """It is found at the third site, when two maps are fitted on it; the fit begins anew without it."""
    spoil(monkeypatch, model)
    allowed = {"failures": {"quarantine_at_most": 0.1}}
    fitted = marked(tmp_path / "poisoned", model, **SEQUENTIAL, **allowed)
    (lost,) = fitted.tally.sides["source"].lost
    assert (lost.row, lost.reason) == (7, "non-finite activation at model.layers.1.input_layernorm")
    assert list(verify(LocalStorage(tmp_path / "poisoned/run"))) == []
    with pytest.raises(LossError):
        marked(tmp_path / "refused", model, **SEQUENTIAL, failures={"quarantine_at_most": 0})
    assert not (tmp_path / "refused/run/CURRENT").exists()


def marked(folder: Path, model: dict[str, Any], **changes: Any) -> Fitted:
    """Runs a spec whose eighth source prompt holds the mark."""
    spec = write_spec(folder, model, **changes)
    lines = (folder / "source.txt").read_text().splitlines()
    lines[7] = f"{MARK} {lines[7]}"
    (folder / "source.txt").write_text("\n".join(lines) + "\n")
    return fit(spec, folder / "run", folder / "cache")


def mark_token(model: dict[str, Any]) -> None:
    """Checks the token of the mark's first byte."""
    vocabulary = json.loads(Path(model["path"], "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary["ô"] == MARK_TOKEN


def spoil(monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    """Makes the first block add infinity to prompts that hold the mark."""
    mark_token(model)
    ids: ContextVar[torch.Tensor] = ContextVar("ids")
    load_model = CausalLMCheckpoint.load

    def load_spoilt(checkpoint: CausalLMCheckpoint, device: str) -> CausalLMModel:
        loaded = load_model(checkpoint, device)

        def note(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            ids.set(args[0])

        def overflow(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            wrong = (ids.get() == MARK_TOKEN).any(dim=1)
            return torch.where(wrong[:, None, None], torch.inf, output)

        loaded.modules["model.embed_tokens"].register_forward_pre_hook(note)
        loaded.modules["model.layers.0.mlp"].register_forward_hook(overflow)
        return loaded

    monkeypatch.setattr(CausalLMCheckpoint, "load", load_spoilt)


def scarce(monkeypatch: pytest.MonkeyPatch, most_rows: int) -> None:
    """Makes memory want at the last block, for batches of more than some rows that hold the mark."""
    allocate, ids = LlamaMLP.forward, ContextVar[torch.Tensor]("ids")
    embed = torch.nn.Embedding.forward

    def embedding(module: torch.nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
        ids.set(tokens)
        return embed(module, tokens)

    def forward(module: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        if hasattr(module, "last") and len(x) > most_rows and (ids.get() == MARK_TOKEN).any():
            raise MemoryError
        return allocate(module, x)

    load_model = CausalLMCheckpoint.load

    def load_scarce(checkpoint: CausalLMCheckpoint, device: str) -> CausalLMModel:
        loaded = load_model(checkpoint, device)
        loaded.modules["model.layers.1.mlp"].register_buffer("last", torch.ones(()))
        return loaded

    monkeypatch.setattr(torch.nn.Embedding, "forward", embedding)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    monkeypatch.setattr(CausalLMCheckpoint, "load", load_scarce)


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_at_a_late_site_runs_in_pieces_from_the_start(model, tmp_path, monkeypatch):
    """Of the unit that holds it, and no other; the fit begins anew, and a replay does the same."""
    mark_token(model)
    scarce(monkeypatch, 2)
    fitted = marked(tmp_path, model, **SEQUENTIAL)
    assert {split.unit for split in fitted.tally.sides["source"].splits} == {0}
    assert fitted.tally.num_lost == 0
    assert list(verify(LocalStorage(tmp_path / "run"))) == []
    monkeypatch.undo()
    assert replay(tmp_path / "run/steer", tmp_path, None, tmp_path / "cache").sites == 5


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_alone_is_quarantined_and_no_other(model, tmp_path, monkeypatch):
    mark_token(model)
    scarce(monkeypatch, 0)
    fitted = marked(tmp_path, model, **SEQUENTIAL, failures={"quarantine_at_most": 0.1})
    assert [(one.row, one.reason) for one in fitted.tally.sides["source"].lost] == [(7, "out of memory, even alone")]
    monkeypatch.undo()
    assert replay(tmp_path / "run/steer", tmp_path, None, tmp_path / "cache").sites == 5


@pytest.mark.slow
def test_a_map_and_a_unit_that_are_missing_are_made_again_and_nothing_counts_twice(model, tmp_path):
    """One prompt is empty, as many as may be lost."""
    spec = write_spec(tmp_path, model, **SEQUENTIAL, failures={"quarantine_at_most": 1 / 67})
    lines = (tmp_path / "source.txt").read_text().splitlines()
    (tmp_path / "source.parquet").unlink(missing_ok=True)
    pq.write_table(pa.table({"text": [*lines[:3], "", *lines[4:]]}), tmp_path / "source.parquet")
    spec.write_text(spec.read_text().replace("path: source.txt", "column: text\n  path: source.parquet"))
    first = fit(spec, tmp_path / "run", tmp_path / "cache")
    before = tensors(tmp_path / "run")
    for path in ("sequential/00000002.json", "receipts/source/00000002.json", "CURRENT"):
        (tmp_path / "run" / path).unlink()
    again_fitted = fit(spec, tmp_path / "run", tmp_path / "cache")
    assert again_fitted.tally.num_lost == first.tally.num_lost == 1
    assert again_fitted.tally.num_prompts == first.tally.num_prompts
    assert tensors(tmp_path / "run") == before


def test_a_fit_that_is_interrupted_leaves_no_hook_and_no_forward(model, tmp_path, monkeypatch):
    models: list[torch.nn.Module] = []
    load_model = CausalLMCheckpoint.load

    def noting(checkpoint: CausalLMCheckpoint, device: str) -> CausalLMModel:
        loaded = load_model(checkpoint, device)
        models.append(loaded.root)
        return loaded

    def interrupt(stepper: Stepper, treated: str, site: int, *parts: Part) -> SiteMap:
        raise KeyboardInterrupt

    monkeypatch.setattr(CausalLMCheckpoint, "load", noting)
    monkeypatch.setattr(Stepper, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model, **SEQUENTIAL)
    assert not any(module._forward_hooks for module in models[0].modules())
    monkeypatch.undo()
    assert again(tmp_path / "run", tmp_path).tally.num_lost == 0


def test_a_side_of_which_nothing_is_left_is_told_as_such(model, tmp_path):
    spec = write_spec(tmp_path, model, **SEQUENTIAL, failures={"quarantine_at_most": 1})
    pq.write_table(pa.table({"text": ["", ""]}), tmp_path / "source.parquet")
    spec.write_text(spec.read_text().replace("path: source.txt", "column: text\n  path: source.parquet"))
    (tmp_path / "source.txt").unlink()
    with pytest.raises(NothingLeftError):
        fit(spec, tmp_path / "run", tmp_path / "cache")


@pytest.mark.slow
def test_the_target_is_run_as_in_a_simultaneous_fit_and_can_be_used_again(model, tmp_path):
    laws = {"store": {"laws": str(tmp_path / "laws")}}
    run(tmp_path / "simultaneous", model, **laws)
    fitted = run(tmp_path / "sequential", model, **SEQUENTIAL, **laws)
    assert fitted.tally.num_units == 9
    origins = {receipt.side: receipt.origin for receipt in fitted.receipts}
    assert origins["source"] == ""
    assert origins["target"] != ""


@pytest.mark.slow
def test_more_prompts_use_no_unit_of_the_source_again(model, exact, tmp_path):
    """What the source has at a site depends on all prompts; the target's units are taken over."""
    told: list[str] = []
    spec = write_spec(tmp_path, model, **SEQUENTIAL, extends=str(exact))
    (tmp_path / "source.txt").write_text("".join(f"{line}\n" for line in [*SOURCES, "one more prompt"]))
    fitted = fit(
        spec,
        tmp_path / "run",
        tmp_path / "cache",
        lambda one: told.append(one.sentence) if isinstance(one, Notice) else None,
    )
    assert any("depends on all prompts" in sentence for sentence in told)
    origins = {receipt.side: receipt.origin for receipt in fitted.receipts}
    assert (origins["source"], bool(origins["target"])) == ("", True)
    alone = run(tmp_path / "alone", model, **SEQUENTIAL)
    assert alone.tally.num_prompts == len(SOURCES) + len(TARGETS)


@pytest.mark.slow
def test_a_map_of_the_log_that_is_damaged_is_named_and_repaired(exact, copied, tmp_path):
    here = copied(exact)
    path = here / "sequential/00000002.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert [damage.key for damage in verify(LocalStorage(here))] == ["sequential/00000002.json"]
    (here / "receipts/source/00000001.json").unlink()
    with pytest.raises(DamagedRunError, match=r"sequential/00000002\.json is damaged"):
        again(here, tmp_path)
    fit(tmp_path / "spec.yaml", here, tmp_path / "cache", damage="repair")
    assert tensors(here) == tensors(exact)
    assert list(verify(LocalStorage(here))) == []


@pytest.mark.slow
@pytest.mark.parametrize(("pipeline", "guidance"), [(tiny_sdxl, 4.0), (tiny_flux, 0.0)])
def test_denoisers_are_fitted_step_by_step(tmp_path, pipeline, guidance):
    """A site at every step, on images that the maps of the steps before have moved; as groups of one site give it."""
    section = {"kind": "text-to-image", "path": str(pipeline(tmp_path / "pipeline")), "steps": 2, "guidance": guidance}
    sides = {"source": {"limit": 3}, "target": {"limit": 2}}
    changes = {"hookpoints": ["transformer.*_blocks.0.attn", "unet.*attn2.to_out.0"][pipeline is tiny_sdxl], **sides}
    fitted = run(tmp_path / "lockstep", section, **SEQUENTIAL, **changes)
    num_sites = len(fitted.plan.sites)
    assert {site.hookpoint.rpartition("@")[2] for site in fitted.plan.sites} == {"0", "1"}
    slow = run(tmp_path / "slow", section, **changes, estimation={"kind": "sequential", "blocks": num_sites})
    simultaneous = run(tmp_path / "simultaneous", section, **changes)
    for name, one in fitted.steer.maps.items():
        assert same_map(one, slow.steer.maps[name])
    assert not all(same_map(one, simultaneous.steer.maps[name]) for name, one in fitted.steer.maps.items())


def test_what_has_no_room_in_memory_waits_in_a_file_to_the_same_bits(model, exact, tmp_path, monkeypatch):
    whole = plan(write_spec(tmp_path / "whole", model, **SEQUENTIAL), tmp_path / "cache").memory
    assert whole.waiting > 10 * KIB
    assert not whole.spills
    moved: list[int] = []
    close = Spill.__exit__

    def closing(spill: Spill, *error: Any) -> None:
        moved.append(spill.moved)
        close(spill, *error)

    monkeypatch.setattr(Spill, "__exit__", closing)
    fitted = run(tmp_path / "tight", model, **SEQUENTIAL, compute={"memory": whole.worker + 10 * KIB})
    assert fitted.plan.memory.spills
    assert moved[0] > whole.waiting
    assert tensors(tmp_path / "tight/run") == tensors(exact)


def test_a_side_that_has_no_room_is_refused_with_how_many_prompts_have(model, tmp_path):
    whole = plan(write_spec(tmp_path, model, **SEQUENTIAL), tmp_path / "cache").memory
    half = whole.worker - whole.held // 2
    with pytest.raises(LockstepPlanError, match="a sequential fit of 40 source prompts") as caught:
        plan(write_spec(tmp_path, model, **SEQUENTIAL, compute={"memory": half}), tmp_path / "cache")
    assert 10 < caught.value.fits < 40
    fits = {"source": {"limit": caught.value.fits // 2}}
    assert plan(
        write_spec(tmp_path, model, **SEQUENTIAL, **fits, compute={"memory": half}), tmp_path / "cache"
    ).sequential


def test_a_steer_is_replayed_from_its_card(exact, tmp_path):
    assert replay(exact / "steer", exact.parent, None, tmp_path / "cache").sites == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"law": {"misfits": "mend"}}, "report with estimation: sequential"),
        ({"transport": {"method": "linear", "select": {"by": "w2", "top": 3, "of": "sites"}}}, "across each site"),
        ({"estimation": {"kind": "simultaneous", "blocks": 2}}, "no blocks"),
        ({"estimation": {"kind": "sequential", "blocks": 0}}, "blocks"),
        ({"estimation": "sequentiel"}, "did you mean"),
    ],
)
def test_what_a_sequential_fit_cannot_do_is_refused(model, tmp_path, changes, words):
    with pytest.raises(SpecError, match=words):
        plan(write_spec(tmp_path, model, **(SEQUENTIAL | changes)), tmp_path / "cache")
