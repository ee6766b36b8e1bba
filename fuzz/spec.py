"""Specs: any bytes are a job or a `SpecError` of one short line."""

import os
import tempfile
from pathlib import Path

from schemas.job import Job, SpecError, read_job

_PLACE = Path(tempfile.mkdtemp()) / "spec.yaml"
_ROOT = Path(__file__).parents[1]


def seeds() -> list[bytes]:
    """The specs of the examples, and one with what they leave out."""
    full = b"""version: 1
name: any
model: {kind: causal-lm, path: m, gguf_file: a.gguf, revision: main, dtype: bfloat16}
source: {path: [a.csv, b.csv], column: text, where: {a: true, b: [1, x], c: {min: 0.5, max: 1e3}}, limit: 5}
target: {path: b.txt, sample: 5, seed: 3}
hookpoints: [a.*, "b:1"]
template: chat
pooling: last
transport: {method: aura, support: [1, 99], select: {by: w2, top: 0.5, of: neurons, across: site}}
compute: {workers: 0, address: local, device: cpu, max_tokens: 8, unit_size: 8, batch_tokens: 64, reducers: 2}
store: {activations: none, quota: 20GiB}
failures: {quarantine_at_most: 0.001}
law: {kind: sketch, precision: 4}
"""
    return [full, *(path.read_bytes() for path in sorted(_ROOT.glob("examples/**/*.yaml")))]


def check(data: bytes) -> None:
    """Reads a spec."""
    _PLACE.write_bytes(data)
    try:
        job = read_job(_PLACE)
    except SpecError as refused:
        sentence = str(refused).removeprefix(os.fspath(_PLACE))
        if "\n" in sentence or len(sentence) > 2000:
            raise AssertionError(f"a refusal of {len(sentence)} characters: {sentence[:2000]!r}") from refused
        return
    if Job.model_validate(job.model_dump(mode="json")) != job:
        raise AssertionError("the job is another one after it was written and read again")
