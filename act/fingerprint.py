"""The fingerprint of a model in memory: do these maps belong to these weights?"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

#: Values of each parameter that enter the fingerprint.
SAMPLES = 16


def fingerprint(model: nn.Module | Any) -> str:  # noqa: ANN401
    """Returns the SHA-256 over each parameter's name, shape and `SAMPLES` evenly spaced values.

    Values are rounded to bfloat16, so that a model fitted in float32 and served in bfloat16 keeps its fingerprint
    when the checkpoint itself holds bfloat16 or the rounding is the loader's own. Buffers do not count. It costs
    milliseconds whatever the size, and finds another model, another checkpoint or a finetune; not a single changed
    weight.

    Args:
        model: A module, or a diffusers pipeline: then the modules among its components, text encoders and image
            decoder included, each parameter's name beginning with the component's.
    """
    seen = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in sorted(_parameters(model), key=lambda pair: pair[0]):
            seen.update(f"{name}{tuple(parameter.shape)}".encode())
            if not parameter.is_meta:
                seen.update(_sample(parameter))
    return seen.hexdigest()


def _parameters(model: nn.Module | Any) -> Iterator[tuple[str, nn.Parameter]]:  # noqa: ANN401
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
        return
    for component, part in model.components.items():
        if isinstance(part, nn.Module):
            yield from part.named_parameters(prefix=component)


def _sample(parameter: torch.Tensor) -> bytes:
    count = min(SAMPLES, parameter.numel())
    places = torch.arange(count) * (parameter.numel() - 1) // max(count - 1, 1)
    if not parameter.is_contiguous():
        parameter = parameter.contiguous()
    values = parameter.view(-1)[places.to(parameter.device)]
    return bytes(values.to("cpu", torch.bfloat16).view(torch.uint8).tolist())
