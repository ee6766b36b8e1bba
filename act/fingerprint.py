"""The fingerprint of a model in memory: do these maps belong to these weights?"""

import hashlib
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
        model: A module, or a diffusers pipeline: then its denoiser.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "unet", None) or model.transformer
    seen = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            seen.update(f"{name}{tuple(parameter.shape)}".encode())
            if not parameter.is_meta:
                seen.update(_sample(parameter))
    return seen.hexdigest()


def _sample(parameter: torch.Tensor) -> bytes:
    count = min(SAMPLES, parameter.numel())
    places = torch.arange(count) * (parameter.numel() - 1) // max(count - 1, 1)
    if not parameter.is_contiguous():
        parameter = parameter.contiguous()
    values = parameter.view(-1)[places.to(parameter.device)]
    return bytes(values.to("cpu", torch.bfloat16).view(torch.uint8).tolist())
