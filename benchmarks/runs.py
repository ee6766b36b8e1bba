"""Runs to measure: a real spec, planned and laid out in a temporary folder, with no unit done yet."""

import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from jobs.demo import find_model
from pipeline import layout
from pipeline.models.quiet import quiet
from pipeline.plan import make_plan, settle
from pipeline.storage import LocalStorage
from schemas import record
from schemas.job import Job, read_job
from schemas.plan import Plan
from schemas.timings import Timings

STATEMENTS = Path("examples/music/statements.parquet")

_SPEC = """\
version: 1
name: benchmark
model: {{kind: causal-lm, path: {model}}}
source: {{path: {data}, column: statement, sample: {num_prompts}, seed: 1}}
target: {{path: {data}, column: statement, sample: {num_prompts}, seed: 2}}
hookpoints: layernorms
pooling: mean
estimation: {estimation}
compute: {{workers: {workers}, threads: {threads}, max_tokens: 64, unit_size: {unit_size}}}
"""


@final
@dataclass(frozen=True)
class Setting:
    """A job in the words of its spec.

    Args:
        num_prompts: Prompts of each side.
        unit_size: Prompts of a unit.
        workers: Ray actors; 0 for this process.
        threads: Threads of a worker.
        model: Folder of the model; None for SmolLM2.
        data: Parquet file with a column ``statement``.
        estimation: ``simultaneous`` or ``sequential``.
    """

    num_prompts: int
    unit_size: int
    workers: int = 0
    threads: int = 1
    model: Path | None = None
    data: Path = STATEMENTS
    estimation: str = "simultaneous"

    def write(self, folder: Path) -> Path:
        """Writes the spec into a folder; returns its path."""
        facts = dataclasses.asdict(self) | {"model": (self.model or find_model()).absolute()}
        facts["data"] = self.data.absolute()
        path = folder / "spec.yaml"
        path.write_text(_SPEC.format(**facts))
        return path


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A context with a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="actmap-benchmark-") as folder:
        yield Path(folder)


def lay_out(setting: Setting, folder: Path) -> tuple[Plan, LocalStorage]:
    """Returns the plan of a setting and the place of its run, ready for workers."""
    spec = setting.write(folder)
    job: Job = read_job(spec)
    plan, checkpoint = make_plan(job, spec.parent, folder / "cache")
    storage = LocalStorage(folder / "run")
    settle(plan, storage)
    layout.lay_out(storage, plan, job.located(spec.parent), spec.read_bytes())
    checkpoint.prepare()
    return plan, storage


def tiny_model(folder: Path) -> Path:
    """Writes a llama of two narrow blocks with SmolLM2's tokenizer; returns its folder."""
    teacher = find_model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with quiet():
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for path in teacher.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def short_prompts(path: Path, count: int) -> Path:
    """Writes a Parquet file of prompts of three to six words drawn from the statements, the same for every call."""
    texts = pq.read_table(STATEMENTS, columns=["statement"])["statement"].to_pylist()
    words = sorted({word for text in texts for word in text.split()})
    draw = random.Random(0)
    made = [" ".join(draw.choices(words, k=draw.randint(3, 6))) for _ in range(count)]
    pq.write_table(pa.table({"statement": made}), path)
    return path


def stages_of(setting: Setting) -> dict[str, float]:
    """Runs ``actmap fit`` as a command of its own, and returns the seconds of each stage."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with scratch() as folder:
        command = [sys.executable, "-m", "jobs.cli", "fit", str(setting.write(folder)), "--run", str(folder / "run")]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return dict(record.unseal(Timings, (folder / "run" / "timings.json").read_bytes()).stages)
