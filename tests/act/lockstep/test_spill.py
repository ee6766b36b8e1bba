import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from act.errors import SpillError
from act.hookpoint import modules_of
from act.lockstep import Lockstep
from act.lockstep.module_state import Isolation
from act.lockstep.spill import Spill
from tests.act.lockstep.engine import in_lockstep, lockstep_of
from tests.act.lockstep.oracle import Batch, Maps, Sides, assert_same

ROOT = Path(__file__).parents[3]
SPILLING = Path(__file__).with_name("spilling.py")
WIDTH = 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_models() -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", str(SPILLING), "-v", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )

    ended = f"ended by {signal.Signals(-ran.returncode).name}" if ran.returncode < 0 else f"returned {ran.returncode}"
    assert ran.returncode == 0, f"{ended}, last in {ran.stdout[-4000:]}\n{ran.stderr[-8000:]}"


class Toy(nn.Module):
    """Two layers and what a subclass does between them; every layer is a site."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.gate, self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


SITES = ["gate", "up", "down"]


class Views(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.cat([x, x + 1], dim=-1).chunk(2, dim=-1)
        first = self.gate(left)[..., 1:]
        second = self.up(right).transpose(1, 2)
        return self.down(nn.functional.pad(first, (1, 0)) * second.transpose(1, 2)) + left


class Keeping(Toy):
    """Keeps a tensor of the last batch that was longer than all before, as tables of positions are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.longest, self.kept = 0, {"tables": [torch.zeros(0)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > self.longest:
            self.longest, self.kept["tables"] = x.shape[1], [torch.arange(x.shape[1]).float()]
        y = self.gate(x)
        # No operation: only what Python reads.
        scale = sum(self.kept["tables"][0].tolist()[: x.shape[1]])
        return self.down(y * scale + self.up(x))


@cache
def table(length: int) -> torch.Tensor:
    return torch.arange(length * 6).view(length, 6).sin()


class Cached(Toy):
    """Takes a table that all batches of a length share from a cache which no module has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gate(x) + table(9)[: x.shape[1]]
        return self.down(y * self.up(x))


class Shared(Toy):
    """Makes storages that cannot be resized."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = (x + 1).share_memory_()
        array = (x + 2).numpy()
        y = self.gate(shared)
        return self.down(y * self.up(x) + torch.from_numpy(array.sum(-1, keepdims=True, dtype=np.float32)))


def batches(model: nn.Module, mode: Callable[[], AbstractContextManager[Any]]) -> Sides:
    def batch(seed: int, length: int) -> Batch:
        x = torch.randn(3, length, WIDTH, generator=torch.Generator().manual_seed(seed))

        def run() -> None:
            with mode():
                model(x)

        return Batch(run)

    return [batch(0, 5), batch(1, 9), batch(2, 2)], [batch(3, 5), batch(4, 9)]


def maps_of(model: nn.Module, sides: Sides, **options: Any) -> Maps:
    table.cache_clear()
    return in_lockstep(modules_of(model), SITES, sides, **options)


def everything(model: nn.Module) -> Mapping[str, nn.Module]:
    return dict(model.named_modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", [Toy, Views, Keeping, Cached, Shared])
def test_maps_are_those_without_a_limit(
    kind: type[Toy], mode: Callable[[], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    with Spill({}, 1 << 40, tmp_path) as unlimited:
        model = kind()
        maps_of(model, batches(model, mode), turn=unlimited.turn)
    model = kind()
    wanted = maps_of(model, batches(model, mode))

    for budget in (0, unlimited.peak // 8, unlimited.peak // 2):
        model = kind()
        with Spill(everything(model), budget, tmp_path) as spill:
            assert_same(maps_of(model, batches(model, mode), turn=spill.turn), wanted)
        assert spill.moved > 0


def test_of_a_suspended_forward_nothing_stays_but_its_input(tmp_path: Path) -> None:
    model, x, made = Toy(), torch.ones(2, 3, WIDTH), []
    model.gate.register_forward_hook(lambda module, args, output: made.append(output))

    with Spill(modules_of(model), 0, tmp_path) as spill:
        lockstep = lockstep_of(modules_of(model), SITES, ([Batch(lambda: model(x))], []), turn=spill.turn)
        with lockstep.running():
            lockstep.read(0)
            assert [one.untyped_storage().nbytes() for one in (*made, x)] == [0, 2 * 3 * WIDTH * 4]
            # The file has no name, so that nothing of it can stay.
            assert list(tmp_path.iterdir()) == []
    assert torch.equal(made[0], model.gate(x))
    assert (spill.moved, spill.peak) == (2 * 3 * 6 * 4, 2 * 3 * 6 * 4)


def test_what_was_resident_stays_so(tmp_path: Path) -> None:
    model, output = Toy(), 2 * 3 * 6 * 4
    sides: Sides = [Batch(lambda: model(torch.ones(2, 3, WIDTH))) for _ in range(3)], []
    made: list[torch.Tensor] = []
    model.gate.register_forward_hook(lambda module, args, gated: made.append(gated))

    with Spill(modules_of(model), 2 * (output + 2 * 3 * WIDTH * 4), tmp_path) as spill:
        lockstep = lockstep_of(modules_of(model), SITES, sides, turn=spill.turn)
        with lockstep.running():
            for site in range(2):
                lockstep.read(site)
                assert [one.untyped_storage().nbytes() for one in made[:2]] == [output, output]
                assert made[2].untyped_storage().nbytes() == 0
                lockstep.move(site, None)


def test_a_forward_that_is_ended_cleans_up_with_all_its_values(tmp_path: Path) -> None:
    found: list[float] = []

    class Cleaning(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x + 1
            try:
                return self.down(self.gate(x) * self.up(x))
            finally:
                found.append(float(y.sum()))

    def failing(x: torch.Tensor) -> None:
        raise ValueError("the last batch is none")

    model = Cleaning()
    whole = [Batch(partial(model, torch.full((1, 2, WIDTH), float(number)))) for number in range(3)]
    runs: Sides = [*whole, Batch(lambda: failing(torch.ones(1)))], []
    with Spill(modules_of(model), 0, tmp_path) as spill:
        with (
            pytest.raises(ValueError, match="the last batch"),
            (lockstep := lockstep_of(modules_of(model), SITES, runs, turn=spill.turn)).running(),
        ):
            lockstep.read(0)
        moved = spill.moved
        assert found == [24.0, 16.0, 8.0]
    assert spill.moved == moved > 0


def test_what_outlives_its_forward_stays_in_memory(tmp_path: Path) -> None:
    model, kept = Toy(), []
    sides: Sides = [Batch(lambda: kept.append(model(torch.ones(1, 2, WIDTH)))) for _ in range(2)], []

    with Spill(modules_of(model), 0, tmp_path) as spill:
        lockstep = lockstep_of(modules_of(model), SITES, sides, turn=spill.turn)
        lockstep.move(1, None)
        lockstep.move(2, None)
        with lockstep.running():
            lockstep.read(0)
            lockstep.move(0, None)
            lockstep.read(2)
            assert torch.equal(kept[0], model(torch.ones(1, 2, WIDTH)))


@contextmanager
def both(outer: AbstractContextManager[object], inner: AbstractContextManager[object]) -> Iterator[None]:
    with outer, inner:
        yield


def test_passages_with_modules_of_their_own(tmp_path: Path) -> None:
    def fitted(budget: int | None) -> Maps:
        model = Toy()
        modules, sides = modules_of(model), batches(model, torch.inference_mode)
        gate: Any = model.gate
        gate.register_buffer("table", torch.zeros(2), persistent=False)
        isolation = Isolation(modules, ["gate.table"])

        def grow(module: nn.Module, args: Sequence[torch.Tensor], output: torch.Tensor) -> None:
            gate.table = torch.cat([gate.table, output.sum(-1).flatten()])

        def read(module: nn.Module, args: Sequence[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return output + gate.table.sum()

        gate.register_forward_hook(grow)
        model.up.register_forward_hook(read)
        if budget is None:
            return maps_of(model, sides, turn=isolation.turn)
        with Spill(modules, budget, tmp_path) as spill:
            return maps_of(model, sides, turn=lambda number: both(spill.turn(number), isolation.turn(number)))

    assert_same(fitted(0), fitted(None))


def test_a_folder_that_is_not_there_is_an_error_before_any_forward(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match=r"nowhere cannot hold .*No such file"):
        Spill({}, 0, tmp_path / "nowhere")


def opened_in(folder: Path) -> Path:
    """The one file in a folder that this process has open, which has no name there."""
    (found,) = (one for one in Path("/proc/self/fd").iterdir() if os.path.realpath(one).startswith(f"{folder}/"))
    return found


def read_after_loss(lockstep: Lockstep, folder: Path) -> None:
    with lockstep.running():
        lockstep.read(0)
        lockstep.move(0, None)
        os.truncate(opened_in(folder), 10)
        lockstep.read(1)


def test_a_file_that_lost_its_bytes_is_an_error_and_all_forwards_end(tmp_path: Path) -> None:
    model = Toy()
    with Spill(modules_of(model), 0, tmp_path) as spill:
        lockstep = lockstep_of(modules_of(model), SITES, batches(model, torch.no_grad), turn=spill.turn)
        with pytest.raises(SpillError, match="Input/output error"):
            read_after_loss(lockstep, tmp_path)
    toy = Toy()
    assert_same(maps_of(model, batches(model, torch.no_grad)), maps_of(toy, batches(toy, torch.no_grad)))
