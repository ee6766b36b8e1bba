import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from jobs import demo
from tests.command import ROOT, environment
from tests.jobs.runs import SOURCES, TARGETS, write_spec

COMMANDS = ["plan", "fit", "status", "report", "generate"]


def process(*arguments: str | Path, cache: Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process that begins from nothing, as a user's does."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=environment(cache) | options, capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_help_lists_every_command_and_is_what_no_argument_asks_for(actmap):
    done = actmap("--help")
    assert (done.code, done.err) == (0, "")
    assert all(f"\n  {command} " in done.out for command in COMMANDS)
    assert actmap() == done


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_offers_json(actmap, command):
    done = actmap(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: actmap {command} " in done.out
    assert "--json" in done.out


def test_help_imports_nothing_heavy(tmp_path):
    script = (
        "import sys\nsys.argv = ['actmap', 'fit', '--help']\nfrom jobs.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
    heavy = {"torch", "numpy", "transformers", "diffusers", "ray", "zarr", "pyarrow", "yaml", "jinja2"}
    assert "typer" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["bogus", "see actmap --help"]),
        (["paln", "spec.yaml"], ["paln", "Did you mean 'plan'?", "see actmap --help"]),
        (["plan"], ["spec", "see actmap plan --help"]),
        (["plan", "a", "b"], ["(b)", "see actmap plan --help"]),
        (["plan", "a", "--bogus"], ["--bogus", "see actmap plan --help"]),
        (["fit", "spec.yaml"], ["--run", "see actmap fit --help"]),
        (["generate", "--model", "m"], ["--prompt", "see actmap generate --help"]),
        (["generate", "--prompt", "p"], ["--model", "see actmap generate --help"]),
        (["generate", "--model", "m", "--prompt", "p", "--strength", "much"], ["--strength", "number"]),
        (["generate", "--model", "m", "--prompt", "p", "--new-tokens", "0"], ["--new-tokens", "1"]),
        (["generate", "--model", "m", "--prompt", "p", "--temperature", "nan"], ["--temperature", "0"]),
        (["generate", "--model", "m", "--prompt", "p", "--dtype", "int8"], ["--dtype", "float32"]),
    ],
)
def test_a_command_that_cannot_be_understood_is_refused_in_one_sentence(actmap, arguments, words):
    done = actmap(*arguments)
    assert done.code == 2
    assert all(word in done.refusal for word in words)


def test_plan_prints_units_hookpoints_memory_disk_and_fingerprint_and_writes_nothing(actmap, llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    before = {path: path.stat().st_mtime_ns for folder in (tmp_path, llama) for path in folder.rglob("*")}
    facts = actmap("plan", spec, "--json", cwd=tmp_path).json
    page = actmap("plan", spec, cwd=tmp_path).out
    assert facts["units"] == {"source": 5, "target": 4}
    assert facts["prompts"] == {"source": len(SOURCES), "target": len(TARGETS)}
    assert [(site["name"], site["type"], site["width"]) for site in facts["hookpoints"]] == [
        ("model.layers.0.input_layernorm", "LlamaRMSNorm", 32),
        ("model.layers.0.post_attention_layernorm", "LlamaRMSNorm", 32),
        ("model.layers.1.input_layernorm", "LlamaRMSNorm", 32),
        ("model.layers.1.post_attention_layernorm", "LlamaRMSNorm", 32),
        ("model.norm", "LlamaRMSNorm", 32),
    ]
    memory = facts["memory"]
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert facts["model"]["parameters"] == model.num_parameters()
    assert memory["weights"] == 4 * (model.num_parameters() + sum(buffer.numel() for buffer in model.buffers()))
    assert memory["block"] == 8 * 5 * 32 * 4
    assert memory["sketch"] == 2 * 5 * 32 * (243 + 17) * 4  # of tokens, while they are counted and as they are written
    assert memory["reducer"] == 0  # laws are exact
    needed = memory["weights"] + memory["forward"] + 2 * memory["block"] + memory["sketch"]
    assert memory["worker"] == needed < memory["available"]
    for side in ("source", "target"):
        assert facts["law"][side]["kind"] == "exact"
        assert facts["law"][side]["rule"] in page
    assert facts["disk"] == (len(SOURCES) + 32) * 192 * 4  # whole units, whole chunks of 64 neurons
    assert len(facts["fingerprint"]) == 64
    assert facts["fingerprint"] in page
    assert "40 prompts in 5 units" in page
    assert "5 with 160 neurons in all" in page
    assert all(site["name"] in page for site in facts["hookpoints"])
    after = {path: path.stat().st_mtime_ns for folder in (tmp_path, llama) for path in folder.rglob("*")}
    assert after == before
    assert not list(actmap.cache.iterdir())


def test_fit_says_where_the_steer_is_and_what_it_cost(actmap, fitted):
    spec = fitted.parent / "spec.yaml"
    facts = actmap("fit", spec, "--run", fitted, "--json").json
    assert Path(facts["steer"]) == fitted / "steer"
    assert facts["prompts"] == len(SOURCES) + len(TARGETS)
    assert facts["tensors"] == json.loads((fitted / "steer" / "steer.json").read_text())["tensors"]
    assert {"plan", "extract", "fit", "save"} <= set(facts["seconds"])
    page = actmap("fit", spec, "--run", fitted)
    assert page.code == 0
    assert str(fitted / "steer") in page.out
    assert f"actmap report {fitted}" in page.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "SPEC"],
        ["fit", "SPEC", "--run", "RUN"],
        ["status", "RUN"],
        ["report", "RUN"],
        ["generate", "--model", "MODEL", "--steer", "RUN/steer", "--prompt", "a\u2028b\x85c", "--new-tokens", "2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_with_json_standard_output_is_one_line_of_one_object(actmap, fitted, llama, arguments):
    places = {"SPEC": fitted.parent / "spec.yaml", "RUN": fitted, "MODEL": llama, "RUN/steer": fitted / "steer"}
    done = actmap(*(places.get(argument, argument) for argument in arguments), "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert done.json


def test_debug_shows_where_an_error_came_from_and_keeps_the_sentence_last(actmap, tmp_path):
    done = actmap("plan", tmp_path / "none.yaml", "--debug")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith(f"actmap: {tmp_path / 'none.yaml'}: ")


@pytest.mark.slow
def test_a_process_from_nothing_adds_no_noise_to_what_it_says(llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    done = process("fit", spec, "--run", tmp_path / "run", "--json", cache=tmp_path / "cache", TERM="dumb")
    assert done.returncode == 0
    assert json.loads(done.stdout)["prompts"] == len(SOURCES) + len(TARGETS)
    assert all(line.startswith("[ ") for line in done.stderr.splitlines()), done.stderr
    bad = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)}, hookpoints="nothing")
    refused = process("fit", bad, "--run", tmp_path / "other", cache=tmp_path / "cache")
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)


def test_paths_are_not_broken_over_lines(actmap, fitted, tmp_path):
    deep = tmp_path / ("a" * 120) / ("b" * 120)
    deep.mkdir(parents=True)
    (deep / "run").symlink_to(fitted)
    assert f"{deep / 'run' / 'steer'}\n" in actmap("status", deep / "run").out
    assert actmap("report", deep / "run").out == f"{deep / 'run' / 'report.html'}\n"


def test_control_characters_of_names_do_not_reach_the_terminal(actmap, tmp_path):
    refusal = actmap("plan", tmp_path / "a\x1b[31mb\nc.yaml").refusal
    assert "\x1b" not in refusal
    assert r"a\x1b[31mb c.yaml" in refusal


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "plan", str(spec)],
        env=environment(tmp_path / "cache"),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_a_failure_of_storage(llama, tmp_path):
    spec = write_spec(tmp_path, {"kind": "causal-lm", "path": str(llama)})
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "plan", str(spec)],
            env=environment(tmp_path / "cache"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
    assert done.returncode == 74
    assert "actmap: the output cannot be used: No space left on device" in done.stderr.splitlines()[0]


def test_the_demo_ends_like_a_command(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_show", interrupted)
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 75
    assert capsys.readouterr().err == "actmap: stopped; run the same command again to go on from what is done\n"
