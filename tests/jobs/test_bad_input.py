"""Bad specs and prompts through the command line: the exit code, one sentence, and nothing written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.jobs.runs import SOURCES, write_spec


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
    ("changes", "line", "words"),
    [
        ({"transport": {"method": "linaer"}}, "method:", "wanted one of det-zero, actadd, caa, aura, east, iti-mean, "),
        ({"transport": {"method": "caa", "threshold": 0.5}}, "threshold:", "'threshold' is for det-zero"),
        ({"transport": {"method": "aura", "select": {"by": "w2", "top": 1.0}}}, "top:", "or a share between 0 and 1"),
        ({"law": {"kind": "sketch", "precision": 9}}, "precision:", "wanted a whole number from 1 to 8"),
        ({"law": "sketch", "transport": {"method": "iti-probe"}}, "law:", "wanted auto or exact with method iti-probe"),
        (
            {"store": {"activations": "none"}, "transport": {"method": "iti-probe"}},
            "activations:",
            "wanted all with method iti-probe",
        ),
        ({"store": {"activations": "some"}}, "activations:", "one of all, sample, none"),
        ({"compute": {"reducers": 0}}, "reducers:", "wanted a whole number above 0"),
    ],
)
def test_a_method_a_law_or_a_store_that_is_refused_is_named_with_its_line(refused, tmp_path, changes, line, words):
    sentence = refused(**changes)
    lines = (tmp_path / "spec.yaml").read_text().splitlines()
    assert f"spec.yaml line {next(n for n, text in enumerate(lines, 1) if line in text)}: " in sentence
    assert words in sentence


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
    assert "which is not here" in refused(compute={"device": "cuda"})


def test_activations_that_pass_the_quota(refused):
    assert "store.quota is" in refused(store={"quota": "1KiB"})


def test_a_worker_that_would_need_more_memory_than_there_is(refused):
    assert "a worker needs" in refused(compute={"batch_tokens": 10**9})


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
    assert "2 prompts were left out for giving no activation" in done.err
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
    assert "2 prompts were longer than max_tokens and cut to it" in done.err
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
