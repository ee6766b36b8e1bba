"""Hookpoints: which outputs of which modules are read and steered.

A hookpoint is written ``module[:output][@step]``: the dotted name of a module, the place in its output
when that is a tuple, and the denoising step when the model is a denoiser.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import nn

from act.errors import HookpointNotFoundError, HookpointOutputError, HookpointPatternError

Preset = Literal["layernorms", "attention-out", "mlp-out", "blocks"]
PRESETS: tuple[str, ...] = get_args(Preset)

_WRITTEN = re.compile(r"(?P<module>.+?)(?::(?P<output>\d+))?(?:@(?P<step>\d+))?")
_NORM = re.compile(r"(Layer|RMS)Norm", re.IGNORECASE)
_ATTENTION = re.compile(r"Attention|Attn|Mixer(?!Layer)|DeltaNet")
_MLP = re.compile(r"(MLP|MoE|MoeBlock|MoEBlock|FeedForward|FFN|LayerFF)$|^FeedForward", re.IGNORECASE)


@final
@dataclass(frozen=True)
class Hookpoint:
    """One output of one module, at one denoising step if the model has steps.

    Args:
        module: Dotted name of the module.
        output: Place in a tuple output; None for a tensor output, or the first of a tuple.
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

    def of(self, returned: Any) -> torch.Tensor:  # noqa: ANN401
        """Returns this hookpoint's tensor of what the module returned.

        Raises:
            HookpointOutputError: There is no tensor at that place.
        """
        found = returned
        if isinstance(returned, tuple | list):
            place = self.output or 0
            found = returned[place] if place < len(returned) else None
        elif self.output:
            found = None
        if not isinstance(found, torch.Tensor):
            raise HookpointOutputError(str(self), _describe(returned))
        return found

    def put(self, returned: Any, tensor: torch.Tensor) -> Any:  # noqa: ANN401
        """Returns what the module returned with this hookpoint's tensor replaced."""
        if not isinstance(returned, tuple | list):
            return tensor
        place = self.output or 0
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
        HookpointPatternError: A pattern is no regular expression.
    """
    wanted = [hookpoints] if isinstance(hookpoints, str) else list(hookpoints)
    chosen: dict[Hookpoint, None] = {}
    for pattern in wanted:
        found = _preset(pattern, modules) if pattern in PRESETS else _match(pattern, modules)
        if not found:
            raise HookpointNotFoundError(pattern, nearest(pattern, [*modules, *PRESETS]))
        chosen |= dict.fromkeys(found)
    order = {name: place for place, name in enumerate(modules)}
    return tuple(sorted(chosen, key=lambda hookpoint: (order[hookpoint.module], hookpoint.output or 0)))


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
    """A preset names a role. Roles are told by the class of a module and of those around it, for names differ by family."""
    role: dict[str, Callable[[str], bool]] = {
        "layernorms": lambda name: _is(modules, name, _NORM) and not _inside(modules, name, _ATTENTION),
        "attention-out": lambda name: _is(modules, name, _ATTENTION) and not _inside(modules, name, _ATTENTION),
        "mlp-out": lambda name: _is(modules, name, _MLP) and not _inside(modules, name, _MLP),
        "blocks": lambda name: _is_block(modules, name) and not any(_is_block(modules, a) for a in _above(name)),
    }
    return [Hookpoint(name) for name in modules if role[preset](name)]


def _is(modules: Mapping[str, nn.Module], name: str, kind: re.Pattern[str]) -> bool:
    return name in modules and kind.search(type(modules[name]).__name__) is not None


def _inside(modules: Mapping[str, nn.Module], name: str, kind: re.Pattern[str]) -> bool:
    return any(_is(modules, above, kind) for above in _above(name))


def _is_block(modules: Mapping[str, nn.Module], name: str) -> bool:
    """A block is a composite element of a list of modules."""
    parent = modules.get(name.rpartition(".")[0])
    return isinstance(parent, nn.ModuleList) and name in modules and any(True for _ in modules[name].children())


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _describe(returned: Any) -> str:  # noqa: ANN401
    if isinstance(returned, tuple | list):
        return f"a {type(returned).__name__} of {len(returned)}"
    return f"a {type(returned).__name__}"
