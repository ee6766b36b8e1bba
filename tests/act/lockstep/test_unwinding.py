"""Forwards that fail, catch what ends them, or are left in the middle: all end, and leave nothing behind."""

import gc
import sys
import traceback
import weakref
from functools import partial
from typing import Any

import pytest
import torch

from act.hookpoint import modules_of
from tests.act.lockstep.engine import lockstep_of
from tests.act.lockstep.oracle import Batch
from tests.act.lockstep.toys import SITES, Toy, given, go_through, sides_of, straight
from tests.visiting import hooks


@pytest.mark.parametrize("failing", [0, 2, 4])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_an_error_unwinds_all_and_keeps_its_traceback(error: type[BaseException], site: str, failing: int) -> None:
    begun, ended = list[int](), list[tuple[int, bool]]()

    def fail_behind(name: str, number: int) -> None:
        if number == failing and name == site:
            raise error("here")

    def way(number: int, toy: Toy, x: torch.Tensor) -> torch.Tensor:
        begun.append(number)
        with torch.enable_grad():
            try:
                for name in SITES:
                    x = toy.get_submodule(name)(x)
                    fail_behind(name, number)
                return x
            finally:
                ended.append((number, torch.is_grad_enabled()))

    model = Toy(straight)
    batches = [Batch(partial(way, number, model, given(number))) for number in range(5)]
    lockstep = lockstep_of(modules_of(model), SITES, (batches, []))
    with torch.no_grad():
        with pytest.raises(error, match="here") as caught:
            go_through(lockstep)
        assert not torch.is_grad_enabled()
    assert sorted(ended) == [(number, True) for number in sorted(begun)]
    assert hooks(model) == 0
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["way", "fail_behind"]
    assert "read" in names
    assert caught.value.__context__ is None


def test_forwards_that_never_began_are_dropped() -> None:
    begun = list[int]()
    model = Toy(straight)

    def way(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ZeroDivisionError
        model(given(number))

    lockstep = lockstep_of(modules_of(model), SITES, ([Batch(partial(way, number)) for number in range(4)], []))
    with pytest.raises(ZeroDivisionError):
        go_through(lockstep)
    assert begun == [0, 1]
    assert hooks(model) == 0


def test_an_error_of_whoever_fits_unwinds_too() -> None:
    ended = list[int]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        try:
            straight(toy, x)
        finally:
            ended.append(len(x))

    model = Toy(way)
    lockstep = lockstep_of(modules_of(model), SITES, sides_of(model))

    def fit_badly() -> None:
        with lockstep.running():
            lockstep.read(0)
            assert ended == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit_badly()
    assert sorted(ended) == [2, 2, 2, 3, 3]
    assert hooks(model) == 0


def test_an_error_while_one_unwinds_does_not_keep_the_others() -> None:
    ended = list[int]()

    def way(number: int, toy: Toy, x: torch.Tensor) -> None:
        try:
            straight(toy, x)
        finally:
            ended.append(number)
            if number == 1:
                raise ZeroDivisionError("on the way out")

    model = Toy(straight)
    batches = [Batch(partial(way, number, model, given(number))) for number in range(4)]
    lockstep = lockstep_of(modules_of(model), SITES, (batches, []))
    with pytest.raises(ZeroDivisionError, match="on the way out"), lockstep.running():
        lockstep.read(0)
    assert sorted(ended) == [0, 1, 2, 3]
    assert hooks(model) == 0


# Catching what ends them.


def test_a_forward_that_catches_everything_ends_all_the_same() -> None:
    passed = list[str]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        for name in SITES:
            try:
                toy.get_submodule(name)(x)
                passed.append(name)
            except:  # noqa: E722
                passed.append(f"caught in {name}")

    model = Toy(way)
    lockstep = lockstep_of(modules_of(model), SITES, ([Batch(partial(model, given(0)))] * 2, []))
    with lockstep.running():
        lockstep.read(0)
    assert passed == [f"caught in {name}" for name in SITES] * 2
    assert hooks(model) == 0


def test_a_forward_that_catches_errors_does_not_catch_its_end() -> None:
    caught = list[BaseException]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        try:
            straight(toy, x)
        except Exception as exc:  # noqa: BLE001
            caught.append(exc)

    model = Toy(way)
    lockstep = lockstep_of(modules_of(model), SITES, ([Batch(partial(model, given(0)))] * 2, []))
    with lockstep.running():
        lockstep.read(0)
    assert caught == []
    assert hooks(model) == 0


def test_a_site_in_the_handler_of_an_error_keeps_that_error() -> None:
    seen = list[Any]()

    def way(number: int, toy: Toy, x: torch.Tensor) -> None:
        try:
            try:
                raise LookupError(number)
            except LookupError:
                x = toy.third(toy.second(toy.first(x)))
                seen.append(sys.exc_info()[1])
                raise
        except LookupError as exc:
            seen.append(exc)

    model = Toy(straight)
    batches = [Batch(partial(way, number, model, given(number))) for number in range(3)]
    lockstep = lockstep_of(modules_of(model), SITES, (batches, []))
    outside = OSError("outside")
    try:
        raise outside
    except OSError:
        go_through(lockstep)
        seen.append(sys.exc_info()[1])
    assert seen.pop() is outside
    assert [exc.args for exc in seen] == [(0,), (0,), (1,), (1,), (2,), (2,)]


# Leaving nothing behind.


@pytest.mark.parametrize("num_read", [0, 1, 2, 3])
def test_an_early_end_leaves_nothing_behind(num_read: int) -> None:
    model = Toy(straight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = [given(seed) for seed in range(4)]
    alive = [weakref.ref(x) for x in inputs]
    batches = [Batch(partial(model, x)) for x in inputs]
    lockstep = lockstep_of(modules_of(model), SITES, (batches, []))
    with lockstep.running():
        for site in range(num_read):
            lockstep.read(site)
            lockstep.move(site, None)
    del inputs, batches, lockstep
    gc.collect()
    assert [x() for x in alive] == [None] * 4
    assert hooks(model) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(given(0)), straight(model, given(0)))


def test_forwards_end_with_their_context_although_somebody_holds_the_lockstep() -> None:
    alive = list[weakref.ref[torch.Tensor]]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        kept = x + 1
        alive.append(weakref.ref(kept))
        straight(toy, kept)

    model = Toy(way)
    lockstep = lockstep_of(modules_of(model), SITES, sides_of(model))
    with lockstep.running():
        lockstep.read(0)
        assert all(kept() is not None for kept in alive)
    assert [kept() for kept in alive] == [None] * 5
    assert lockstep is not None
