"""Prompts of a language model, from text to padded micro-batches: a pure function of the prompts and the rule."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from pipeline.errors import TemplateError
from pipeline.models.interface import PackingRule
from pipeline.models.quiet import quiet
from schemas.job import PADDING


def position_limit(config: transformers.PretrainedConfig) -> int | None:
    """Returns how many positions a model's configuration gives it; None if it names no number."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def padded(length: int, limit: int | None) -> int:
    """Returns the width of a micro-batch whose longest prompt has `length` tokens.

    Widths are multiples of `PADDING`: float32 bits were then seen not to depend on the other rows. None passes the
    model's last position.
    """
    width = -(-length // PADDING) * PADDING
    return limit if limit is not None and length <= limit < width else width


def encode(
    tokenizer: transformers.PreTrainedTokenizerBase, prompts: Sequence[str | None], rule: PackingRule
) -> tuple[list[list[int]], int]:
    """Returns the tokens of each prompt, at most `max_tokens`, none for an empty one; and how many were cut."""
    real = [row for row, prompt in enumerate(prompts) if prompt]
    tokens: list[list[int]] = [[] for _ in prompts]
    if not real:
        return tokens, 0
    texts = templated(tokenizer, [prompts[row] or "" for row in real], rule.template)
    special = rule.template == "plain"
    with quiet():
        whole = tokenizer(texts, add_special_tokens=special)["input_ids"]
        long = [place for place, ids in enumerate(whole) if len(ids) > rule.max_tokens]
        for place in long:
            whole[place] = tokenizer(
                texts[place], add_special_tokens=special, truncation=True, max_length=rule.max_tokens
            )["input_ids"]
    for row, ids in zip(real, whole, strict=True):
        tokens[row] = ids
    return tokens, len(long)


def fill(order: Sequence[int], widths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cuts rows sorted by length into batches whose padded size is at most `batch_tokens`.

    Args:
        order: The rows.
        widths: Padded length of each row, by row.
        batch_tokens: Tokens of a batch, padding included; a row that has more is a batch of its own.
    """
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * widths[row] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad(tokens: Sequence[Sequence[int]], width: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and attention mask, both ``[batch, tokens]``, padded on the right."""
    ids = torch.full((len(tokens), width), filler, dtype=torch.long)
    mask = torch.zeros((len(tokens), width), dtype=torch.long)
    for place, row in enumerate(tokens):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


def templated(tokenizer: transformers.PreTrainedTokenizerBase, prompts: Sequence[str], template: str) -> list[str]:
    """Returns prompts as the model reads them: ``plain`` as they are, ``chat`` as a user's turn.

    Raises:
        TemplateError: The tokenizer has no chat template.
    """
    if template == "plain":
        return list(prompts)
    if not tokenizer.chat_template:
        raise TemplateError(str(tokenizer.name_or_path))
    wrap: Callable[..., Any] = tokenizer.apply_chat_template
    return [
        str(wrap([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False))
        for prompt in prompts
    ]
