from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.pooling import TokenSpans
from pipeline.models import MicroBatch, PackingRule
from pipeline.models.causal_lm import CausalLMCheckpoint
from schemas.job import CausalLM
from tests.models import tiny_llama
from tests.pipeline.models.drawing import RULE, model_of


def _batch(lengths: list[int], spans: TokenSpans | None) -> MicroBatch:
    """A micro-batch whose rows of the unit are odd, with an input of each shape that models have."""
    rows = tuple(2 * place + 1 for place in range(len(lengths)))
    inputs = {"input_ids": torch.arange(len(lengths) * 8).reshape(-1, 8), "seeds": rows}
    return MicroBatch(rows, inputs, spans)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=9), st.integers(1, 12))
def test_pieces_are_as_equal_as_possible_and_together_the_whole(lengths: list[int], parts: int):
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    batch = _batch(lengths, TokenSpans.from_mask(mask))
    pieces = batch.split(parts)
    sizes = [len(piece.rows) for piece in pieces]
    assert len(pieces) == min(parts, len(lengths))
    assert max(sizes) - min(sizes) <= 1
    assert sum((piece.rows for piece in pieces), ()) == batch.rows
    assert all(piece.inputs["seeds"] == piece.rows for piece in pieces)
    assert torch.equal(torch.cat([piece.inputs["input_ids"] for piece in pieces]), batch.inputs["input_ids"])
    spans = [piece.spans for piece in pieces if piece.spans is not None]
    assert torch.equal(torch.cat([part.mask for part in spans]), mask)
    assert sum((part.counts for part in spans), ()) == tuple(lengths)


def test_pieces_of_a_batch_without_padding_have_none():
    assert [piece.spans for piece in _batch([8, 8, 8], None).split(2)] == [None, None]


def test_masked_rows_of_a_language_model_are_padding_that_counts(tmp_path: Path):
    spec = CausalLM(kind="causal-lm", path=str(tiny_llama(tmp_path / "llama")))
    model = CausalLMCheckpoint(spec, tmp_path).load("cpu")
    batch = model.pack(["a song about rain", "a", "the sun rose"], 0, PackingRule("plain", 32, 64)).batches[0]
    before = {name: value.clone() for name, value in batch.inputs.items()}
    assert batch.rows == (1, 0, 2)
    masked = model.mask(batch, {1, 2, 99})
    assert (masked.rows, masked.spans) == (batch.rows, batch.spans)
    assert torch.equal(masked.inputs["attention_mask"], before["attention_mask"])
    assert torch.equal(masked.inputs["input_ids"][1], before["input_ids"][1])
    assert before["input_ids"][[0, 2]].any(dim=1).all()
    assert not masked.inputs["input_ids"][[0, 2]].any()
    assert torch.equal(model.mask(batch, ()).inputs["input_ids"], before["input_ids"])
    assert all(torch.equal(batch.inputs[name], value) for name, value in before.items())


@pytest.mark.parametrize("changes", [{}, {"guidance": 4.0}])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_masked_images_have_no_words_and_the_same_noise(
    folders: Mapping[str, Path], name: str, changes: dict[str, Any]
):
    model = model_of(folders[name], steps=1, **changes)
    batch = model.pack(["a cat", None, "b"], 7, RULE).batches[0]
    masked = model.mask(batch, [2])
    assert masked.inputs == {"prompts": ("a cat", ""), "seeds": batch.inputs["seeds"]}
    assert (masked.rows, masked.spans) == (batch.rows, None)
    model.forward(model.mask(batch, [0, 2]))
