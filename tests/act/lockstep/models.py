"""Models of many families with a few micro-batches each, and what their forwards visit."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from act.errors import ActError
from act.hookpoint import Hookpoint, modules_of
from act.pooling import TokenSpans, channel_axis
from tests.act.lockstep.oracle import Batch, Sides
from tests.architectures import tiny, tokens

#: Norms, linear layers, or all modules without modules of their own.
Kind = Literal["norms", "projections", "leaves"]

#: Number of real tokens of each row: three batches of the source and two of the target, padded on the right.
LENGTHS = (((5, 3, 4), (9, 2), (12, 11, 7)), ((6, 6, 1), (8, 10)))

_WITH_DECODER = ("bart", "t5")
_WITHOUT_CACHE = ("albert", "distilbert")


@dataclass(frozen=True, eq=False)
class Case:
    """A model and its batches."""

    modules: Mapping[str, nn.Module]
    sides: Sides

    def sites(self, kind: Kind) -> list[str]:
        """Returns the modules of a kind that all forwards visit, in the order of execution, by first visits.

        Their outputs are as wide in all batches, and have a vector a token where it is known how many tokens there are.
        """
        chosen = [name for name, module in self.modules.items() if _is(kind, module)]
        widths: dict[str, set[int | None]] = {}
        orders = [self._visits(chosen, batch, widths) for side in self.sides for batch in side]
        fitting = {name for name, found in widths.items() if len(found) == 1 and None not in found}
        ordered = [[name for name in order if name in fitting] for order in orders]
        assert all(order == ordered[0] for order in ordered)
        return ordered[0]

    def _visits(self, chosen: list[str], batch: Batch, widths: dict[str, set[int | None]]) -> list[str]:
        order: dict[str, None] = {}

        def look(name: str, output: Any) -> None:
            order[name] = None
            widths.setdefault(name, set()).add(_width(output, batch.spans))

        with ExitStack() as stack:
            for name in chosen:
                hook = self.modules[name].register_forward_hook(lambda module, args, out, name=name: look(name, out))
                stack.enter_context(hook)
            batch.run()
        return list(order)


def language_model(
    family: str,
    attention: str | None = None,
    dtype: torch.dtype = torch.float32,
    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode,
) -> Case:
    """Returns a transformers model of a family with batches of unequal lengths that are padded on the right."""
    return with_texts(tiny(family, attention).to(dtype), family, mode)


def with_texts(
    model: nn.Module, family: str, mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
) -> Case:
    """Returns a model of a family with the batches that all of them get."""
    source, target = ([_text(model, family, mode, real) for real in side] for side in LENGTHS)
    return Case(modules_of(model), (source, target))


def unet() -> Case:
    """Returns the denoiser of a latent diffusion model with batches of images of two sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=16,
        )
    model.eval().requires_grad_(False)

    def batch(seed: int, rows: int, size: int, num_tokens: int) -> Batch:
        normal = _normal(seed)
        latents, text = normal(rows, 4, size, size), normal(rows, num_tokens, 16)
        return Batch(lambda: _inferred(model, latents, 500, encoder_hidden_states=text))

    return Case(modules_of(model), ([batch(0, 3, 8, 5), batch(1, 2, 4, 7)], [batch(2, 2, 8, 6), batch(3, 3, 4, 4)]))


def flux() -> Case:
    """Returns the denoiser of a rectified flow, a transformer, with batches of images of two sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        )
    model.eval().requires_grad_(False)

    def batch(seed: int, rows: int, num_latents: int, num_tokens: int) -> Batch:
        normal = _normal(seed)
        given = {
            "hidden_states": normal(rows, num_latents, 16),
            "encoder_hidden_states": normal(rows, num_tokens, 16),
            "pooled_projections": normal(rows, 16),
            "timestep": torch.full((rows,), 0.5),
            "img_ids": torch.arange(3 * num_latents).reshape(num_latents, 3).float(),
            "txt_ids": torch.zeros(num_tokens, 3),
        }
        return Batch(lambda: _inferred(model, **given))

    return Case(modules_of(model), ([batch(0, 3, 4, 5), batch(1, 2, 9, 7)], [batch(2, 2, 4, 6), batch(3, 3, 9, 4)]))


def _text(
    model: nn.Module, family: str, mode: Callable[[], AbstractContextManager[Any]], real: tuple[int, ...]
) -> Batch:
    mask = (torch.arange(max(real)) < torch.tensor(real)[:, None]).long()
    given: dict[str, Any] = {"input_ids": tokens(len(real), max(real), sum(real)) * mask, "attention_mask": mask}
    if family in _WITH_DECODER:
        given["decoder_input_ids"] = tokens(len(real), max(real), sum(real) + 1) * mask
        given["decoder_attention_mask"] = mask
    if family not in _WITHOUT_CACHE:
        given["use_cache"] = False

    def run() -> None:
        with mode():
            model(**given)

    return Batch(run, TokenSpans.from_mask(mask))


def _is(kind: Kind, module: nn.Module) -> bool:
    if kind == "projections":
        return isinstance(module, nn.Linear | Conv1D)
    leaf = next(module.children(), None) is None
    return leaf and (kind == "leaves" or re.search("norm", type(module).__name__, re.IGNORECASE) is not None)


def _width(output: Any, spans: TokenSpans | None) -> int | None:
    """Returns how many neurons an output has; None if it has none, or not one vector a token."""
    try:
        tensor = Hookpoint("").of(output)
        axis = channel_axis(tensor)
    except ActError:
        return None
    if spans is not None and (tensor.ndim != 3 or tensor.shape[:2] != spans.mask.shape):
        return None
    return tensor.shape[axis]


def _normal(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _inferred(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.inference_mode():
        model(*args, **kwargs)
