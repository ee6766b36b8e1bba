"""Three layers that a function goes through, and what tests of odd forwards share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from act.hookpoint import modules_of
from act.lockstep import Lockstep
from act.transport import AbstractMap, TransportMap
from tests.act.lockstep.engine import in_lockstep
from tests.act.lockstep.oracle import Batch, Sides, assert_same, one_after_another
from tests.visiting import hooks

#: A toy's forward, from its layers and its input.
Way = Callable[["Toy", torch.Tensor], Any]


class Toy(nn.Module):
    """Three layers that a function goes through."""

    first: nn.Module
    second: nn.Module
    third: nn.Module

    def __init__(self, way: Way, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.third = (nn.Linear(width, width) for _ in range(3))
        self.requires_grad_(False).eval()
        self._way = way

    def forward(self, x: torch.Tensor) -> Any:
        return self._way(self, x)


SITES = ["first", "second", "third"]


def straight(toy: Toy, x: torch.Tensor) -> torch.Tensor:
    return toy.third(torch.tanh(toy.second(torch.tanh(toy.first(x)))))


def given(seed: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 5, 4, generator=torch.Generator().manual_seed(seed))


def sides_of(model: nn.Module) -> Sides:
    """Returns three batches of the source and two of the target."""
    batches = [Batch(partial(model, given(seed, rows=2 + seed % 2))) for seed in range(5)]
    return batches[:3], batches[3:]


def check(model: nn.Module, sites: list[str] = SITES, sides: Sides | None = None) -> list[AbstractMap | None]:
    """Fails unless lockstep gives the maps of running again, and some of them move; returns them."""
    chosen = sides_of(model) if sides is None else sides
    wanted = one_after_another(modules_of(model), sites, chosen)
    assert_same(in_lockstep(modules_of(model), sites, chosen), wanted)
    assert hooks(model) == 0
    assert any(one is not None and bool(one.moves.any()) for one in wanted)
    return wanted


def go_through(lockstep: Lockstep, transport: AbstractMap | None = None) -> None:
    """Runs all forwards to their ends, with one map at all three sites."""
    with lockstep.running():
        for site in range(3):
            lockstep.read(site)
            lockstep.move(site, transport)
        lockstep.read(3)  # nobody stops there


def shifted(width: int, by: float) -> TransportMap:
    return TransportMap(
        torch.ones(width), torch.full((width,), by), torch.full((width,), -torch.inf), torch.full((width,), torch.inf)
    )
