"""What tests of discovery and capture share: a module whose sites are visited oddly, and ways to look at it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from act.capture import discover
from act.hookpoint import modules_of, select
from schemas.plan import Site


class Backwards(nn.Module):
    """Registers its last layer first; one layer is optional, one never runs, one runs twice."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.last, self.twice, self.never = nn.Linear(5, 6), nn.Linear(5, 5), nn.Linear(2, 2)
        self.first, self.optional = nn.Linear(width, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, *, skip: bool = False) -> torch.Tensor:
        x = self.first(x)
        x = self.twice(self.twice(x))
        return self.last(x if skip else self.optional(x))


def look(model: nn.Module, hookpoints: str | list[str], forward: Callable[[], object], **options: Any) -> list[Site]:
    modules = modules_of(model)
    with torch.inference_mode():
        return list(discover(modules, select(hookpoints, modules), forward, **options))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
