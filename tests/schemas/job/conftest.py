"""What the tests of the spec share: the contract's own spec, and what reading it with changes gives."""

import pytest

from schemas.job import SpecError, read_job

SPEC = """\
version: 1
name: less-toxic
model:      {kind: causal-lm, path: models/small, dtype: float32}
source:     {path: data/comments.parquet, column: text, where: {toxic: true}, limit: 4096}
target:
  path: data/comments.parquet
  column: text
  where: {toxic: false, topic: [a, b], score: {min: 0.5}}
hookpoints: layernorms
template:   plain
pooling:    mean
estimation: simultaneous
transport:  {method: linear, support: observed}
compute:    {workers: 2, address: local, device: auto, max_tokens: 128, unit_size: 512, batch_tokens: 4096}
store:      {activations: all, quota: 20GiB}
failures:   {quarantine_at_most: 0.001}
law:        {kind: auto, precision: 5}
"""


@pytest.fixture
def read(tmp_path):
    def read(*changes, text=SPEC):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "spec.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_job(path)

    return read


@pytest.fixture
def refused(read, tmp_path):
    def refused(*changes, text=SPEC):
        with pytest.raises(SpecError) as caught:
            read(*changes, text=text)
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert sentence.startswith(f"{tmp_path}/spec.yaml")
        return sentence.removeprefix(f"{tmp_path}/")

    return refused
