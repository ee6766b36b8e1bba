"""Faults 48 to 56 as the command meets them: prompts, specs, models and names that do harm."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from tests.faults.injection.armed import Fault
from tests.faults.runs import SOURCES, WARM, Case, check_complete, counted, hurt, make_case, receipts, write_spec
from tests.faults.trials import PLAIN
from tests.models import tiny_llama

#: A sign whose bytes occur in no other prompt, and the token of one of them in the tiny model's tokenizer.
MARK = "\U00100000"


def mark_token(llama: Path) -> str:
    """The expression for the token of the mark's first byte, 0xF4."""
    vocabulary = json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"]
    return f"<{vocabulary['ô']}>"


def test_48_activations_that_are_not_finite_and_a_prompt_without_tokens(trials, llama, tmp_path):
    """Both prompts are quarantined, each with its reason; the others keep their bits."""
    prompts = [*SOURCES, f"this one {MARK} spoils", ""]
    changes = {"failures": {"quarantine_at_most": 0.5, "lease": 60.0}, "law": {"kind": "exact"}}
    harmless = [*SOURCES, "", ""]
    like = make_case(trials, tmp_path / "like", llama, **changes, **{"source.txt": harmless})
    spec = write_spec(tmp_path / "spoilt", llama, **changes, **{"source.txt": prompts})
    done = trials.fit(spec, tmp_path / "run", Fault("forward", "nan", last=0, match=mark_token(llama)))
    assert done.code == 0, done
    status = trials.start(["status", tmp_path / "run", "--json"]).end().json
    reasons = status["losses"]
    assert len(reasons) == 2, reasons
    assert "non-finite" in reasons[0]
    assert counted(tmp_path / "run") == counted(like.run)


@pytest.mark.slow
def test_49_too_many_prompts_are_lost(trials, llama, tmp_path):
    """Exit code 65 and which they are."""
    prompts = [*SOURCES, *(f"spoilt {number} {MARK}" for number in range(3))]
    spec = write_spec(tmp_path, llama, **{"source.txt": prompts}, failures={"quarantine_at_most": 0.1})
    done = trials.fit(spec, tmp_path / "run", Fault("forward", "nan", last=0, match=mark_token(llama)))
    assert done.code == 65, done
    assert "source row 5" in done.err
    assert not (tmp_path / "run" / "CURRENT").exists()


@pytest.fixture(scope="module")
def begun(trials, llama, tmp_path_factory) -> Case:
    """A run of its own model, killed in its midst."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(llama, folder / "llama")
    spec = write_spec(folder, folder / "llama", law={"kind": "exact"})
    done = trials.fit(spec, folder / "run", Fault("pipeline.ledger:Ledger.commit", at=2, when="after"))
    assert done.code == -9, done
    return Case(spec, folder / "run")


def other_weights(folder: Path) -> None:
    shutil.rmtree(folder / "llama")
    tiny_llama(folder / "llama", seed=1)


def other_tokenizer(folder: Path) -> None:
    path = folder / "llama" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer))


def other_max_tokens(folder: Path) -> None:
    path = folder / "spec.yaml"
    path.write_text(path.read_text().replace("max_tokens: 16", "max_tokens: 32"))


def other_threads(folder: Path) -> None:
    path = folder / "spec.yaml"
    path.write_text(path.read_text().replace("max_tokens: 16", "max_tokens: 16\n  threads: 2"))


def one_row_more(folder: Path) -> None:
    with (folder / "source.txt").open("a") as file:
        file.write("one more\n")


def other_order(folder: Path) -> None:
    (folder / "source.txt").write_text("\n".join(reversed(SOURCES)) + "\n")


def fewer_rows(folder: Path) -> None:
    (folder / "source.txt").write_text("\n".join(SOURCES[:3]) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(other_weights, "model.fingerprint", id="50-weights"),
        pytest.param(other_tokenizer, "model.fingerprint", id="50-tokenizer"),
        pytest.param(other_max_tokens, "max_tokens", id="50-spec"),
        pytest.param(other_threads, "threads", id="50-threads"),
        pytest.param(one_row_more, "source.", id="51-appended"),
        pytest.param(other_order, "source.fingerprint", id="51-reordered"),
        pytest.param(fewer_rows, "source.", id="51-truncated"),
    ],
)
def test_50_51_what_the_run_rests_on_changed(trials, begun, tmp_path, change, named):
    """Refused with 2, naming the difference; the run is left as it was."""
    folder = Path(shutil.copytree(begun.spec.parent, tmp_path / "copy"))
    spec = folder / "spec.yaml"
    spec.write_text(spec.read_text().replace(str(begun.spec.parent), str(folder)))
    before = receipts(folder / "run")
    change(folder)
    done = trials.fit(spec, folder / "run")
    assert done.code == 2, done
    assert named in done.err
    assert receipts(folder / "run") == before


@pytest.mark.parametrize(
    "name",
    [
        "receipts/source/00000001.json",
        pytest.param("activations.zarr/source/c/1/0", marks=pytest.mark.slow),
        pytest.param("receipts/source", marks=pytest.mark.slow),
    ],
)
def test_52_a_link_leads_out_of_the_run(trials, exact, tmp_path, name):
    """In place of a receipt, a shard or a folder: refused, and what it leads to is left alone."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=2, when="after"), code=-9)
    whole = run / name
    (shutil.rmtree if whole.is_dir() else Path.unlink)(whole)
    (outside.mkdir if "." not in whole.name and whole.name != "0" else outside.touch)()
    whole.symlink_to(outside)
    done = trials.fit(exact.spec, run, settings=WARM)
    assert done.code == 74, done
    assert "it is a link" in done.err
    assert outside.stat().st_size == 0 or not list(outside.iterdir())


@pytest.mark.slow
def test_53_a_header_of_a_terabyte(trials, exact, tmp_path):
    """Refused by its size before it is parsed."""
    run = Path(shutil.copytree(exact.run, tmp_path / "run", symlinks=True))
    path = next(run.glob("steers/*/steer.safetensors"))
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    done = trials.fit(exact.spec, run, settings=WARM)
    assert done.code == 74, done
    assert "steer.safetensors" in done.err


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_54_a_pickle_for_weights(trials, llama, tmp_path):
    """Never unpickled: refused, and nothing of it ran."""
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "it-ran")))
    done = trials.fit(write_spec(tmp_path / "spec", folder), tmp_path / "run")
    assert done.code == 2, done
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("line", ["name: !!python/object/apply:os.mkdir [it-ran]", "name: a\nname: b"])
def test_55_yaml_that_is_more_than_a_spec(trials, llama, tmp_path, line):
    """A tag, a key twice: refused with 2."""
    spec = write_spec(tmp_path, llama)
    spec.write_text(spec.read_text().replace("name: tiny", line))
    done = trials.fit(spec, tmp_path / "run", settings=PLAIN)
    assert done.code == 2, done
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_56_prompts_that_would_be_markup_or_control(trials, llama, tmp_path):
    """The report, the status and the log show no such sign as it is."""
    prompts = ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "\x1b[31mred", "a\u202eb", *SOURCES]
    case = make_case(trials, tmp_path, llama, **{"source.txt": prompts}, law={"kind": "exact"})
    outputs = [trials.start([command, case.run]).end() for command in ("report", "status")]
    assert [done.code for done in outputs] == [0, 0], outputs
    shown = (case.run / "report.html").read_text() + "".join(done.out + done.err for done in outputs)
    assert not [sign for sign in ("<script>alert", "\x1b", "\u202e", "=cmd|") if sign in shown]
    check_complete(case.run, case.run)
