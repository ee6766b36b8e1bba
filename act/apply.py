"""Steering: a steer's maps applied to a model's outputs while a context lasts."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from act.capture import hooked
from act.clock import AbstractClock, DenoisingClock, StillClock
from act.errors import OtherModelError, StrengthError
from act.fingerprint import fingerprint
from act.hookpoint import Hookpoint, modules_of, nearest
from act.pooling import channel_axis
from act.steer import Steer
from act.transport import AbstractMap

#: Maps of one place of the model, by step.
_Steps = dict[int | None, AbstractMap]


@contextmanager
def apply(
    steer: Steer,
    model: nn.Module | Any,  # noqa: ANN401
    strength: float = 1.0,
    *,
    weights: Literal["match", "any"] = "match",
) -> Iterator[None]:
    """A context in which the model is steered: ``a`` becomes ``(1 - strength) * a + strength * T(a)`` at every site.

    No tensor of the model is written in place. Leaving the context restores the model exactly, also after an
    exception. Strength 0 attaches nothing: the model's bits are its own.

    Args:
        steer: The maps.
        model: The module that it was fitted on, or a diffusers pipeline.
        strength: Any finite number: 0 leaves the model as it is, 1 is the whole transport.
        weights: ``match`` refuses a model whose weights have another fingerprint; ``any`` applies the maps to every
            model with the same sites, such as a finetune.

    Raises:
        OtherModelError: The model lacks a site, a width differs, or the weights differ.
        StrengthError: The strength is no finite number.
    """
    strength = _finite(strength)
    modules = modules_of(model)
    _check_sites(steer, modules)
    if weights != "any":
        _check_weights(steer, model)
    if strength == 0:
        yield
        return
    with _steered(steer, modules, _clock(steer, model), strength):
        yield


@contextmanager
def _steered(steer: Steer, modules: Mapping[str, nn.Module], clock: AbstractClock, strength: float) -> Iterator[None]:
    places: defaultdict[Hookpoint, _Steps] = defaultdict(dict)
    for name, transport in steer.maps.items():
        # A site that a selection left out costs nothing.
        if not transport.moves.any():
            continue
        site = Hookpoint.parse(name)
        places[site.place][site.step] = transport.at(strength)

    def move(hookpoint: Hookpoint, module: nn.Module, output: Any) -> Any:  # noqa: ANN401
        steps = places[hookpoint]
        tensor = hookpoint.of(output)
        rows, step = clock.rows(len(tensor)), clock.step
        if rows.start >= rows.stop or step not in steps:
            return None
        steps[step] = steps[step].to(tensor.device)
        return hookpoint.put(output, move_rows(tensor, rows, steps[step], str(hookpoint)))

    with clock.following(), hooked(modules, list(places), move):
        yield


def move_rows(tensor: torch.Tensor, rows: slice, transport: AbstractMap, site: str) -> torch.Tensor:
    """Returns a site's output with some of its rows moved; the output itself is left as it is.

    Raises:
        OtherModelError: It has another number of neurons.
    """
    axis = channel_axis(tensor)
    if tensor.shape[axis] != transport.num_neurons:
        raise OtherModelError(f"{site} has {tensor.shape[axis]} neurons, the steer has {transport.num_neurons}")
    moved = transport(tensor[rows].movedim(axis, -1)).movedim(-1, axis)
    if rows == slice(0, len(tensor)):
        return moved
    return torch.cat([tensor[: rows.start], moved, tensor[rows.stop :]])


def _clock(steer: Steer, model: nn.Module | Any) -> AbstractClock:  # noqa: ANN401
    return DenoisingClock(model, steer.card.timesteps) if steer.card.timesteps else StillClock()


def _finite(strength: Any) -> float:  # noqa: ANN401
    try:
        value = math.nan if isinstance(strength, str | bytes) else float(strength)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise StrengthError(strength)
    return value


def _check_sites(steer: Steer, modules: Mapping[str, nn.Module]) -> None:
    if steer.card.timesteps and not any(name.startswith(("unet.", "transformer.")) for name in modules):
        raise OtherModelError("the steer was fitted on a text-to-image pipeline; this model has no denoiser")
    for site in steer.card.sites:
        name = Hookpoint.parse(site.hookpoint).module
        if name not in modules:
            close = ", ".join(nearest(name, modules))
            raise OtherModelError(f"it has no module {name!r} (nearest: {close})")
        found = type(modules[name]).__name__
        width = getattr(getattr(modules[name], "weight", None), "shape", (site.width,))
        if found == site.module_type and len(width) == 1 and width[0] != site.width:
            raise OtherModelError(f"{name} has {width[0]} neurons, the steer has {site.width}")


def _check_weights(steer: Steer, model: nn.Module | Any) -> None:  # noqa: ANN401
    wanted, found = steer.card.model_fingerprint, fingerprint(model)
    if found != wanted:
        raise OtherModelError(
            f"its weights have the fingerprint {found[:12]}, those that the steer was fitted on {wanted[:12]}; "
            "pass weights='any' (--weights any) if it is a finetune of the same model"
        )
