"""Forwards that do odd things around a site."""

import contextvars
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from greenlet import getcurrent
from torch.utils.checkpoint import checkpoint

from act.hookpoint import modules_of
from act.transport import AbstractMap
from tests.act.lockstep.engine import in_lockstep, lockstep_of
from tests.act.lockstep.oracle import Batch, assert_same, one_after_another
from tests.act.lockstep.toys import SITES, Toy, Way, check, given, go_through, shifted, sides_of, straight


def generated(toy: Toy, x: torch.Tensor) -> Any:
    def inner(x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield toy.first(x)
        yield toy.second(torch.tanh(x))

    def outer(x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from inner(x)
        for y in inner(x + 1):
            yield torch.tanh(y)

    return toy.third(sum(outer(x), torch.zeros(())))


def sorted_by(toy: Toy, x: torch.Tensor) -> Any:
    def key(name: str) -> float:
        return float(toy.get_submodule(name)(x).sum())

    return toy.third(x * (1 + SITES.index(sorted(["first", "second"], key=key)[0])))


def checkpointed(toy: Toy, x: torch.Tensor) -> Any:
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(toy.second(torch.tanh(toy.first(x))))

    return toy.third(checkpoint(block, x, use_reentrant=False))


def checkpointed_again(toy: Toy, x: torch.Tensor) -> Any:
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(toy.second(torch.tanh(toy.first(x))))

    return toy.third(checkpoint(block, x.clone().requires_grad_(), use_reentrant=True))


def in_a_function(toy: Toy, x: torch.Tensor) -> Any:
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return toy.second(torch.tanh(toy.first(x)))

    return toy.third(torch.tanh(Through.apply(x)))


def recursive(toy: Toy, x: torch.Tensor, depth: int = 200) -> Any:
    return recursive(toy, x, depth - 1) if depth else straight(toy, x)


def in_a_context(toy: Toy, x: torch.Tensor) -> Any:
    return contextvars.copy_context().run(straight, toy, x)


@pytest.mark.parametrize(
    "way", [generated, sorted_by, checkpointed, checkpointed_again, in_a_function, recursive, in_a_context]
)
@pytest.mark.parametrize("grad", [False, True])
def test_odd_frames_around_a_site(way: Way, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        check(Toy(way))


def test_a_generator_is_left_and_entered_by_its_own_forward() -> None:
    order = list[str]()

    def way(name: str, toy: Toy, x: torch.Tensor) -> None:
        def steps() -> Iterator[str]:
            for site in SITES:
                toy.get_submodule(site)(x)
                yield f"{name} {site}"

        order.extend(list(steps()))

    model = Toy(straight)
    batches = [Batch(partial(way, name, model, given(0))) for name in "ab"]
    lockstep = lockstep_of(modules_of(model), SITES, (batches, []))
    go_through(lockstep)
    assert order == [f"{name} {site}" for name in "ab" for site in SITES]


def test_a_hook_in_another_thread_stops_nobody() -> None:
    outputs = list[torch.Tensor]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        x = toy.first(x)
        thread = threading.Thread(target=lambda: outputs.append(toy.second(x)))
        thread.start()
        thread.join()
        toy.third(torch.tanh(outputs[-1]))

    model = Toy(way)
    lockstep = lockstep_of(modules_of(model), SITES, ([Batch(partial(model, given(0)))], []))
    present = []
    with lockstep.running():
        for site in range(3):
            present.append(lockstep.read(site)[0][0] is not None)
            lockstep.move(site, None)
    assert present == [True, False, True]
    assert torch.equal(outputs[0], model.second(model.first(given(0))))


def test_a_forward_outside_of_all_is_left_alone() -> None:
    model = Toy(straight)
    wanted = model(given(9))
    lockstep = lockstep_of(modules_of(model), SITES, sides_of(model))
    with lockstep.running():
        for site in range(3):
            lockstep.read(site)
            assert torch.equal(model(given(9)), wanted)
            lockstep.move(site, shifted(4, 1.0))
        assert torch.equal(model(given(9)), wanted)


def test_a_lockstep_inside_a_forward_of_another() -> None:
    inner, found = Toy(straight), list[list[AbstractMap | None]]()
    wanted = one_after_another(modules_of(inner), SITES, sides_of(inner))

    def way(toy: Toy, x: torch.Tensor) -> None:
        x = toy.second(torch.tanh(toy.first(x)))
        found.append(in_lockstep(modules_of(inner), SITES, sides_of(inner)))
        toy.third(torch.tanh(x))

    model = Toy(way)
    maps = in_lockstep(modules_of(model), SITES, sides_of(model))
    for one in found:
        assert_same(one, wanted)
    assert len(found) == 5
    plain = Toy(straight)
    assert_same(maps, in_lockstep(modules_of(plain), SITES, sides_of(plain)))


def test_each_forward_runs_in_a_greenlet_of_its_own_and_the_hub_in_none() -> None:
    hub, seen = getcurrent(), list[object]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        seen.append(getcurrent())
        straight(toy, x)

    model = Toy(way)
    go_through(lockstep_of(modules_of(model), SITES, sides_of(model)))
    assert getcurrent() is hub
    assert len({id(one) for one in [hub, *seen]}) == 6
