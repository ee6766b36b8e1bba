"""Bad input through the command line: the exit code, one sentence, and nothing written."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.jobs.runs import SOURCES, write_spec


@pytest.fixture
def refused_spec(actmap, tmp_path):
    """Returns the sentence with which `plan` and `fit` refuse a file; neither may leave a trace."""

    def check(spec: Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        planned = actmap("plan", spec, cwd=tmp_path)
        fitted = actmap("fit", spec, "--run", tmp_path / "run", cwd=tmp_path)
        assert (planned.code, fitted.code) == (2, 2)
        assert planned.refusal == fitted.refusal
        assert sorted(tmp_path.rglob("*")) == before
        return planned.refusal

    return check


@pytest.fixture
def refused(refused_spec, llama, tmp_path):
    """Returns the sentence with which a spec with some changes is refused."""

    def check(model: Path = llama, gguf_file: str | None = None, **changes) -> str:
        section = {"kind": "causal-lm", "path": str(model), "gguf_file": gguf_file}
        return refused_spec(write_spec(tmp_path, section, **changes))

    return check


@pytest.fixture
def refused_by_fit(actmap, tmp_path):
    """As `refused`, for what only loading the weights shows: `plan` does not load them."""

    def check(model: Path) -> str:
        spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(model)})
        before = sorted(tmp_path.rglob("*"))
        fitted = actmap("fit", spec, "--run", tmp_path / "run", cwd=tmp_path)
        assert fitted.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        return str(fitted.err.splitlines()[-1])

    return check


@pytest.fixture
def model_copy(llama, tmp_path):
    return Path(shutil.copytree(llama, tmp_path / "model"))


def write_rows(path: Path, texts: list[str | None]) -> dict[str, str]:
    """Writes texts as JSON Lines and returns them as a side."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"path": path.name, "column": "text"}


def write_parquet(path: Path) -> dict[str, str]:
    """Writes texts that no compression makes small as a Parquet file of several row groups; returns them as a side."""
    texts = [f"{text} {n * 2654435761 % 2**32:x}" for n, text in enumerate(SOURCES * 20)]
    pq.write_table(
        pa.table({"text": texts, "toxic": [n % 2 == 0 for n in range(len(texts))]}), path, row_group_size=100
    )
    return {"path": path.name, "column": "text"}


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(refused):
    sentence = refused(hookpoint="layernorms")
    assert "spec.yaml line" in sentence
    assert "unknown key 'hookpoint'" in sentence
    assert "did you mean 'hookpoints'?" in sentence


def test_an_unknown_key_of_a_section_is_named_with_its_line_and_the_nearest_one(refused, tmp_path):
    sentence = refused(compute={"worker": 2})
    line = next(n for n, text in enumerate((tmp_path / "spec.yaml").read_text().splitlines(), 1) if "worker:" in text)
    assert f"spec.yaml line {line}: unknown key 'worker' under 'compute'" in sentence
    assert "did you mean 'workers'?" in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the file is empty; wanted a job spec"),
        (b"a: [1", "it is not valid YAML"),
        (b"- a\n- b\n", "wanted 'key: value' lines"),
        (b"name: \xff\xfe", "not UTF-8; save the file as UTF-8"),
        (b"name: a\0b", "it is not valid YAML"),
    ],
)
def test_a_file_that_is_no_spec(refused_spec, tmp_path, text, words):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    sentence = refused_spec(path)
    assert sentence.startswith(str(path))
    assert words in sentence


def test_a_spec_that_is_not_there_or_is_a_folder(refused_spec, tmp_path):
    assert "No such file or directory" in refused_spec(tmp_path / "none.yaml")
    assert "Is a directory" in refused_spec(tmp_path)


def test_a_missing_prompt_file(refused, tmp_path):
    sentence = refused(source={"path": "nowhere.parquet"})
    assert f"no prompt file or folder at {tmp_path / 'nowhere.parquet'}" in sentence
    assert "relative paths start at the folder of the spec" in sentence


@pytest.mark.parametrize("change", [{"column": "txt"}, {"where": {"txt": "a"}}])
def test_a_missing_column(refused, tmp_path, change):
    sentence = refused(source=write_parquet(tmp_path / "a.parquet") | change)
    assert f"no column 'txt' in {tmp_path / 'a.parquet'}" in sentence
    assert "wanted one of text, toxic; did you mean 'text'?" in sentence


def test_an_empty_selection(refused, tmp_path):
    sentence = refused(target=write_parquet(tmp_path / "a.parquet") | {"where": {"text": "not there"}})
    assert f"none of the 800 rows of {tmp_path / 'a.parquet'} is selected by where" in sentence
    assert "loosen the conditions" in sentence


def test_a_condition_of_another_type(refused, tmp_path):
    sentence = refused(target=write_parquet(tmp_path / "a.parquet") | {"where": {"toxic": "yes"}})
    assert "column 'toxic'" in sentence
    assert "cannot be compared with 'yes'" in sentence


def test_a_parquet_file_cut_short(refused, tmp_path):
    side = write_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    sentence = refused(source=side)
    assert f"prompts cannot be read from {tmp_path / 'a.parquet'}" in sentence
    assert "wanted a whole file" in sentence


def test_a_parquet_file_with_a_hole_in_its_data(refused, tmp_path):
    side = write_parquet(tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[2000:2600] = bytes(600)
    (tmp_path / "a.parquet").write_bytes(data)
    assert f"prompts cannot be read from {tmp_path / 'a.parquet'}" in refused(source=side)


@pytest.mark.parametrize("hookpoints", ["layer_norms", ["model.norm", "layer_norms"], ".*layer_norms"])
def test_a_hookpoint_that_matches_nothing_is_named_with_the_nearest_ones(refused, hookpoints):
    sentence = refused(hookpoints=hookpoints)
    assert "layer_norms' matches no module of this model" in sentence
    assert "nearest: " in sentence


def test_a_hookpoint_that_is_no_pattern(refused):
    assert "hookpoint '(' cannot be used: it is no regular expression" in refused(hookpoints="(")


def test_the_chat_template_of_a_model_that_has_none(refused):
    assert "has no chat template, which template: chat needs; write template: plain" in refused(template="chat")


def test_a_device_that_is_not_there(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    assert "torch finds no such device here; write auto or cpu" in refused(compute={"device": "cuda"})


def test_activations_that_pass_the_quota(refused):
    assert "store.quota is" in refused(store={"quota": "1KiB"})


def test_a_worker_that_would_need_more_memory_than_there_is(refused):
    assert "a worker needs" in refused(compute={"batch_tokens": 10**9})


def test_a_model_that_is_not_there(refused, tmp_path):
    assert f"no model at {tmp_path / 'none'}" in refused(tmp_path / "none")
    assert "no model at nobody/nothing" in refused(Path("nobody/nothing"))


def test_a_model_folder_without_weights(refused, model_copy):
    (model_copy / "model.safetensors").unlink()
    assert f"no model at {model_copy}: it holds no weights" in refused(model_copy)


def test_a_model_folder_with_pickled_weights_alone(refused, model_copy):
    weights = load_file(model_copy / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    torch.save(weights, model_copy / "pytorch_model.bin")
    assert "only pickled weights, which are not loaded" in refused(model_copy)


@pytest.mark.parametrize("kept", [5, 2000, -4])
def test_a_model_whose_weights_are_cut_short(refused, model_copy, kept):
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    sentence = refused(model_copy)
    assert f"the model at {model_copy}" in sentence
    assert "cannot be loaded" in sentence


def test_a_model_that_lacks_a_weight(refused_by_fit, model_copy):
    path = model_copy / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused_by_fit(model_copy)


def test_a_model_with_a_weight_of_another_shape(refused_by_fit, model_copy):
    path = model_copy / "model.safetensors"
    save_file(
        load_file(path) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}, path, metadata={"format": "pt"}
    )
    assert "model.layers.1.mlp.up_proj.weight" in refused_by_fit(model_copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "{}", "null"])
def test_a_model_with_a_broken_file(refused, model_copy, name, text):
    (model_copy / name).write_text(text)
    sentence = refused(model_copy)
    assert str(model_copy) in sentence
    assert "cannot be loaded" in sentence


def test_a_model_without_a_tokenizer(refused, model_copy):
    for path in model_copy.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(model_copy)


def test_a_model_that_wants_its_own_code_run(refused, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert "code" in refused(model_copy)


@pytest.mark.parametrize("data", [None, b"", b"GGUF", b"not a gguf file at all, but long enough for its header"])
def test_a_gguf_file_that_is_not_there_or_is_none(refused, actmap, model_copy, tmp_path, data):
    if data is not None:
        (model_copy / "a.gguf").write_bytes(data)
    sentence = refused(model_copy, "a.gguf")
    assert str(model_copy) in sentence
    assert "a.gguf" in sentence
    done = actmap("generate", "--model", model_copy / "a.gguf", "--prompt", "The")
    assert done.code == 2
    assert done.refusal == sentence


def test_one_empty_prompt_in_few_stops_the_run_and_names_the_row(actmap, llama, tmp_path):
    write_spec(tmp_path, {})
    side = write_rows(tmp_path / "rows.jsonl", [*SOURCES[:5], "", *SOURCES[5:]])
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)}, source=side)
    done = actmap("fit", spec, "--run", tmp_path / "run")
    assert done.code == 65
    assert done.out == ""
    assert done.err.splitlines()[-1] == (
        "actmap: 1 prompt gave no activation, 0 are allowed: source row 5 (empty: no tokens); "
        "mend these prompts, or raise failures.quarantine_at_most"
    )
    assert not (tmp_path / "run" / "steer").exists()


def test_a_raised_limit_leaves_empty_prompts_out_and_counts_them_everywhere(actmap, llama, tmp_path):
    texts: list[str | None] = list(SOURCES)
    texts[3], texts[9] = "", None
    side = write_rows(tmp_path / "rows.jsonl", texts)
    spec = write_spec(
        tmp_path,
        {"kind": "causal-lm", "path": str(llama)},
        source=side,
        failures={"quarantine_at_most": 0.1},
    )
    run = tmp_path / "run"
    done = actmap("fit", spec, "--run", run, "--json")
    assert done.code == 0
    assert done.json["quarantined"] == 2
    assert "2 prompts gave no activation and were left out" in done.err
    assert actmap("status", run, "--json").json["quarantined"] == 2
    assert "2 left out" in actmap("status", run).out
    card = json.loads((run / "steer" / "steer.json").read_text())
    assert (card["source"]["num_quarantined"], card["source"]["num_samples"]) == (2, len(SOURCES) - 2)
    assert actmap("report", run).code == 0
    assert "empty: no tokens" in (run / "report.html").read_text()


def test_a_side_of_empty_prompts_alone_fails_whatever_the_limit(actmap, llama, tmp_path):
    side = write_rows(tmp_path / "rows.jsonl", ["", "", ""])
    model = {"kind": "causal-lm", "path": str(llama)}
    spec = write_spec(tmp_path, model, source=side, failures={"quarantine_at_most": 1})
    done = actmap("fit", spec, "--run", tmp_path / "run")
    assert done.code == 65
    assert "no prompt of a side gave an activation" in done.err.splitlines()[-1]


def test_prompts_longer_than_max_tokens_are_cut_counted_and_said(actmap, llama, tmp_path):
    side = write_rows(tmp_path / "rows.jsonl", [*SOURCES, "a very long story " * 100, "another " * 100])
    model, compute = {"kind": "causal-lm", "path": str(llama)}, {"max_tokens": 96, "batch_tokens": 192}
    spec = write_spec(tmp_path, model, source=side, compute=compute)
    done = actmap("fit", spec, "--run", tmp_path / "run", "--json")
    assert (done.code, done.json["truncated"], done.json["quarantined"]) == (0, 2, 0)
    assert "2 prompts were longer than max_tokens and were cut to it" in done.err
    again = actmap("fit", spec, "--run", tmp_path / "run")
    assert "2 cut to max_tokens" in again.out
    assert actmap("status", tmp_path / "run", "--json").json["truncated"] == 2


MIXED = [
    "日本語のテキスト",
    "Ελληνικά και русский",
    "👩‍👩‍👧‍👦 a family 🎵 sings",
    "שלום עולם and مرحبا",
    "\u202eright to left\u202c again",
    "e\u0301\u0300\u0327 combined",
    "a NUL \0 inside",
    "\ufeffa mark of byte order",
    "lines\r\nand\ttabs\u2028and others\x85here",
    "\U0010fffd\uffff\x1b[31m",
]


def test_any_unicode_text_is_a_prompt(actmap, llama, tmp_path):
    side = write_rows(tmp_path / "rows.jsonl", list(MIXED))
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)}, source=side)
    done = actmap("fit", spec, "--run", tmp_path / "run", "--json")
    assert (done.code, done.json["prompts"] - 28, done.json["quarantined"]) == (0, len(MIXED), 0)
    assert actmap("report", tmp_path / "run").code == 0


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/run", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_written(actmap, llama, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    before = sorted(tmp_path.rglob("*"))
    done = actmap("fit", spec, "--run", tmp_path / place)
    assert (done.code, done.out) == (74, "")
    assert done.err.splitlines()[-1].startswith(f"actmap: {tmp_path / place} cannot be written: ")
    assert "Traceback" not in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_something_else_in_it_is_left_alone(actmap, llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    done = actmap("fit", spec, "--run", tmp_path / "home")
    assert done.code == 2
    assert "thesis.txt" in done.refusal
    assert "name a new folder" in done.refusal
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooling": "max"}, "pooling was mean and is max"),
        ({"transport": {"method": "mean"}}, "transport.method was linear and is mean"),
        ({"compute": {"unit_size": 5}}, "compute.unit_size was 8 and is 5"),
        ({"source": {"limit": 7}}, "source.num_prompts was 40 and is 7"),
        ({"hookpoints": "model.norm"}, "sites was"),
        ({"template": "chat"}, "has no chat template"),
    ],
)
def test_another_spec_on_the_folder_of_a_run_is_refused_and_says_what_differs(
    actmap, llama, fitted, changes, words, tmp_path
):
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)}, **changes)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = actmap("fit", spec, "--run", run)
    assert done.code == 2
    assert words in done.refusal
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_folder_that_holds_no_run(actmap, llama, tmp_path, command):
    (tmp_path / "file").write_text("")
    for place in (llama, tmp_path / "none", tmp_path / "file"):
        done = actmap(command, place)
        assert done.code == 2
        assert f"no run at {place}" in done.refusal
    assert not (llama / "report.html").exists()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("part", ["plan.json", "receipts/source/00000001.json", "timings.json"])
@pytest.mark.parametrize("data", [b"", b"{}x", b"[]", b"\xff"])
def test_a_damaged_record_of_a_run_is_named(actmap, fitted, tmp_path, part, data):
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    (run / part).write_bytes(data)
    commands = [("report", run), ("fit", fitted.parent / "spec.yaml", "--run", run), ("status", run)]
    for command in commands[: 2 if part == "timings.json" else 3]:
        done = actmap(*command)
        assert (done.code, done.out) == (74, "")
        assert f"{run / part} is damaged: " in done.err.splitlines()[-1]
        assert "Traceback" not in done.err


def test_a_report_of_a_run_without_a_steer(actmap, fitted, tmp_path):
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    shutil.rmtree(run / "steer")
    done = actmap("report", run)
    assert done.code == 2
    assert f"no steer at {run / 'steer'}" in done.refusal
    assert actmap("status", run, "--json").json["state"] == "fitting"
