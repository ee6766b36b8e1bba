"""Hookpoints: which outputs of which modules are read and steered.

A hookpoint is written ``module[:output][@step]``: the dotted name of a module, the place in its output
when that is a tuple, and the denoising step when the model is a denoiser.
"""

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import nn

from act.errors import HookpointNotFoundError, HookpointOutputError, HookpointPatternError

Preset = Literal["layernorms", "attention-out", "mlp-out", "blocks"]
PRESETS: tuple[str, ...] = get_args(Preset)

_WRITTEN = re.compile(r"(?P<module>.+?)(?::(?P<output>\d+))?(?:@(?P<step>\d+))?")
_NORM = re.compile(r"(Layer|RMS)Norm", re.IGNORECASE)
# The end of the name tells an attention from a block that has one: CrossAttnDownBlock2D, JambaAttentionDecoderLayer.
_ATTENTION = re.compile(r"^(?!.*Block\d).*(Attention|Attn|Mixer|DeltaNet)\d*$")
# Blocks that return the text's stream before the image's, which is the one that a preset means.
_TEXT_FIRST = re.compile(r"^(Flux2?|FluxSingle|Chroma|QwenImage|Joint)TransformerBlock$")
_MIDDLE = re.compile(r"MidBlock")
_MLP = re.compile(r"(MLP|MoE|MoeBlock|MoEBlock|FeedForward|FFN|LayerFF)$|^FeedForward", re.IGNORECASE)


@final
@dataclass(frozen=True)
class Hookpoint:
    """One output of one module, at one denoising step if the model has steps.

    Args:
        module: Dotted name of the module.
        output: Place in an output of several parts, a tuple or a mapping; None for a tensor, or the first of them.
        step: Denoising step, from 0; None for every call.
    """

    module: str
    output: int | None = None
    step: int | None = None

    @classmethod
    def parse(cls, written: str) -> "Hookpoint":
        """Returns the hookpoint that ``module[:output][@step]`` names.

        Raises:
            HookpointPatternError: It names no module.
        """
        match = _WRITTEN.fullmatch(written)
        if match is None:
            raise HookpointPatternError(written, "it names no module")
        output, step = match["output"], match["step"]
        return cls(match["module"], None if output is None else int(output), None if step is None else int(step))

    def __str__(self) -> str:
        output = "" if self.output is None else f":{self.output}"
        step = "" if self.step is None else f"@{self.step}"
        return f"{self.module}{output}{step}"

    @property
    def place(self) -> "Hookpoint":
        """The same output at every step: where a hook is attached."""
        return Hookpoint(self.module, self.output)

    def of(self, returned: Any) -> torch.Tensor:  # noqa: ANN401
        """Returns this hookpoint's tensor of what the module returned.

        Raises:
            HookpointOutputError: There is no floating-point tensor at that place.
        """
        parts, place = _parts(returned), self.output or 0
        found = parts[place] if place < len(parts) else None
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            raise HookpointOutputError(str(self), _describe(returned))
        return found

    def put(self, returned: Any, tensor: torch.Tensor) -> Any:  # noqa: ANN401
        """Returns what the module returned with this hookpoint's tensor replaced; `returned` is left as it is."""
        place = self.output or 0
        if isinstance(returned, MutableMapping):
            moved = copy.copy(returned)
            moved[list(returned)[place]] = tensor
            return moved
        if not isinstance(returned, tuple | list):
            return tensor
        items = [*returned[:place], tensor, *returned[place + 1 :]]
        if isinstance(returned, list):
            return items
        return type(returned)(*items) if hasattr(returned, "_fields") else tuple(items)


def modules_of(model: nn.Module | Any) -> dict[str, nn.Module]:  # noqa: ANN401
    """Returns the modules of a model by dotted name, without the model itself.

    Of a diffusers pipeline these are the modules of its components, each name beginning with the component's.
    """
    if isinstance(model, nn.Module):
        return {name: module for name, module in model.named_modules() if name}
    parts = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{inner}" if inner else name: module
        for name, part in parts.items()
        for inner, module in part.named_modules()
    }


def select(hookpoints: str | Sequence[str], modules: Mapping[str, nn.Module]) -> tuple[Hookpoint, ...]:
    """Returns the hookpoints that presets or patterns name, in registration order.

    Args:
        hookpoints: One or several of: a preset of `PRESETS`, or a regular expression that matches the whole
            name of a module, ending in ``:i`` to take the i-th output.
        modules: The model's modules by name.

    Raises:
        HookpointNotFoundError: A preset or pattern matches no module.
        HookpointPatternError: A pattern is no regular expression, or there are none.
    """
    wanted = [hookpoints] if isinstance(hookpoints, str) else list(hookpoints)
    if not wanted:
        raise HookpointPatternError("", "the list is empty")
    order = {name: place for place, name in enumerate(modules)}
    chosen: dict[tuple[int, int], Hookpoint] = {}
    for pattern in wanted:
        found = _preset(pattern, modules) if pattern in PRESETS else _match(pattern, modules)
        if not found:
            others = [preset for preset in PRESETS if preset != pattern]
            raise HookpointNotFoundError(pattern, nearest(pattern, [*modules, *others]))
        for hookpoint in found:
            # `name` and `name:0` are one place.
            chosen.setdefault((order[hookpoint.module], hookpoint.output or 0), hookpoint)
    return tuple(chosen[place] for place in sorted(chosen))


def nearest(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """Returns up to three candidates that look most like a name, best first."""
    plain = re.sub(r"\\(.)", r"\1", name)
    known = list(candidates)
    return tuple(difflib.get_close_matches(plain, known, n=3, cutoff=0.5) or known[:3])


def _match(pattern: str, modules: Mapping[str, nn.Module]) -> list[Hookpoint]:
    bare, colon, output = pattern.rpartition(":")
    if not (colon and output.isdecimal()):
        bare, output = pattern, ""
    try:
        compiled = re.compile(bare)
    except re.error as exc:
        raise HookpointPatternError(pattern, f"it is no regular expression ({exc})") from exc
    return [Hookpoint(name, int(output) if output else None) for name in modules if compiled.fullmatch(name)]


def _preset(preset: str, modules: Mapping[str, nn.Module]) -> list[Hookpoint]:
    """A preset names a role, told by the class of a module and of those around it, for names differ by family."""
    role: dict[str, Callable[[str], bool]] = {
        "layernorms": lambda name: _is_outermost(modules, name, _NORM) and not _within_attention(modules, name),
        "attention-out": lambda name: _is_outermost(modules, name, _ATTENTION),
        "mlp-out": lambda name: _is_outermost(modules, name, _MLP),
        "blocks": lambda name: _is_block(modules, name) and not any(_is_block(modules, a) for a in _above(name)),
    }
    text_first = preset == "blocks"
    return [
        Hookpoint(name, 1 if text_first and _is(modules, name, _TEXT_FIRST) else None)
        for name in modules
        if role[preset](name)
    ]


def _is(modules: Mapping[str, nn.Module], name: str, kind: re.Pattern[str]) -> bool:
    return name in modules and kind.search(type(modules[name]).__name__) is not None


def _is_outermost(modules: Mapping[str, nn.Module], name: str, kind: re.Pattern[str]) -> bool:
    return _is(modules, name, kind) and not any(_is(modules, above, kind) for above in _above(name))


def _within_attention(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a module is part of an attention's own work, such as a norm of its queries.

    An attention around another one is a wrapper: BERT's and T5's hold the norm of the residual stream as well.
    """
    around = [above for above in _above(name) if _is(modules, above, _ATTENTION)]
    return bool(around) and not any(
        _is(modules, f"{around[-1]}.{inner}", _ATTENTION) for inner, _ in modules[around[-1]].named_modules() if inner
    )


def _is_block(modules: Mapping[str, nn.Module], name: str) -> bool:
    """A block is a composite element of a list of modules; a UNet has one more, in the middle."""
    parent = modules.get(name.rpartition(".")[0])
    listed = isinstance(parent, nn.ModuleList) or _is(modules, name, _MIDDLE)
    return listed and name in modules and any(True for _ in modules[name].children())


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _parts(returned: Any) -> list[Any]:  # noqa: ANN401
    """What a module returned, part by part. transformers and diffusers return mappings with the order of a tuple."""
    if isinstance(returned, MutableMapping):
        return list(returned.values())
    return list(returned) if isinstance(returned, tuple | list) else [returned]


def _describe(returned: Any) -> str:  # noqa: ANN401
    kind = type(returned).__name__
    if isinstance(returned, tuple | list | MutableMapping):
        return f"a {kind} of {', '.join(type(part).__name__ for part in _parts(returned)) or 'nothing'}"
    return f"a {kind} of {returned.dtype}" if isinstance(returned, torch.Tensor) else f"a {kind}"
