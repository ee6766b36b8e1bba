"""What forwards read and are moved by: sites that they skip or come back to, and maps of every kind."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from act.errors import LockstepStateError
from act.hookpoint import modules_of
from act.transport import AbstractMap, TransportMap
from tests.act.lockstep.engine import in_lockstep, lockstep_of
from tests.act.lockstep.oracle import Batch, Sides, assert_same, fitted, one_after_another
from tests.act.lockstep.toys import SITES, Toy, check, given, go_through, shifted, sides_of, straight
from tests.visiting import hooks


class Pair(NamedTuple):
    """What a layer returns besides its activation."""

    activation: torch.Tensor
    other: str


def test_a_toy_gives_the_maps_of_running_again() -> None:
    check(Toy(straight))


def test_other_hooks_stay_and_those_that_were_there_come_before_ours() -> None:
    model = Toy(straight)
    with model.second.register_forward_hook(lambda module, args, output: output * 2):
        sides = sides_of(model)
        wanted = one_after_another(modules_of(model), SITES, sides)
        assert_same(in_lockstep(modules_of(model), SITES, sides), wanted)
        assert hooks(model) == 1
    doubled = wanted[1]
    plain = check(model)[1]
    assert doubled is not None
    assert plain is not None
    assert torch.equal(doubled.tensors()["high"], 2 * plain.tensors()["high"])


@pytest.mark.parametrize("read", ["read", "read_last"])
def test_a_second_run_reads_what_the_first_did(read: str) -> None:
    model = Toy(straight)
    lockstep = lockstep_of(modules_of(model), SITES, sides_of(model))
    samples = []
    for _ in range(2):
        with lockstep.running():
            samples.append(getattr(lockstep, read)(0)[0])
    for first, second in zip(*samples, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


# Skipping sites, and coming back to them.


class Experts(nn.Module):
    """Sends each batch through some of its experts, as the sign of what comes in says."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 4)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor, chosen: tuple[int, ...]) -> torch.Tensor:
        x = self.norm(x)
        for number in chosen:
            x = x + torch.tanh(self.experts[number](x))
        return self.out(x)


#: In the order of execution of any forward, whichever experts it has.
UNION = ["norm", "experts.0", "experts.1", "experts.2", "experts.3", "out"]


def experts_of(model: nn.Module, *sides: list[tuple[int, ...]]) -> Sides:
    source, target = (
        [Batch(partial(model, given(10 * side + number), chosen)) for number, chosen in enumerate(batches)]
        for side, batches in enumerate(sides)
    )
    return source, target


def test_a_forward_that_skips_a_site_has_none_there() -> None:
    model = Experts()
    sides = experts_of(model, [(0, 2), (1,), ()], [(0, 1), (1, 2)])
    lockstep, present = lockstep_of(modules_of(model), UNION, sides), []
    with lockstep.running():
        for site in range(len(UNION)):
            present.append([sample is not None for sample in lockstep.read(site)[0]])
            lockstep.move(site, None)
    assert present == [
        [True] * 5,
        [True, False, False, True, False],
        [False, True, False, True, True],
        [True, False, False, False, True],
        [False] * 5,
        [True] * 5,
    ]  # fmt: skip


def test_experts_take_what_comes() -> None:
    model = Experts()
    maps = check(model, UNION, experts_of(model, [(0, 2), (1,), (0, 1, 3), ()], [(0, 1), (1, 2), (0,)]))
    assert [one is None for one in maps] == [False, False, False, False, True, False]


def test_experts_that_only_one_side_has_are_left_as_they_are() -> None:
    model = Experts()
    maps = check(model, UNION, experts_of(model, [(0, 2), (2,)], [(1,), (1, 3)]))
    assert [one is None for one in maps] == [False, True, True, True, True, False]


@pytest.mark.parametrize("read", ["read", "read_last"])
def test_a_later_run_reads_sites_that_an_earlier_one_had_reached_unmoved(read: str) -> None:
    model = Experts()
    sides = experts_of(model, [(2,), (0, 2)], [(2,), (0, 2)])
    lockstep, maps = lockstep_of(modules_of(model), UNION, sides), list[AbstractMap | None]()
    for group in ([0, 1], [2, 3], [4, 5]):
        with lockstep.running():
            together = getattr(lockstep, read)(*group)
        for site, samples in zip(group, together, strict=True):
            maps.append(fitted(samples[:2], samples[2:], "linear"))
            lockstep.move(site, maps[site])
    for group in ([0, 1], [2, 3], [4, 5]):
        fresh = lockstep_of(modules_of(model), UNION, sides)
        for site in range(group[0]):
            fresh.move(site, maps[site])
        with fresh.running():
            together = getattr(fresh, read)(*group)
        assert_same(maps[group[0] : group[1] + 1], [fitted(one[:2], one[2:], "linear") for one in together])


def test_a_site_that_is_visited_three_times_is_read_once_and_moved_thrice() -> None:
    moved = list[torch.Tensor]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        x = toy.first(x)
        for _ in range(3):
            x = toy.second(x)
            moved.append(x)
        toy.third(x)

    model = Toy(way)
    maps = check(model)
    moved.clear()
    one, scaled = Batch(partial(model, given(0))), shifted(4, 1.0)
    lockstep = lockstep_of(modules_of(model), SITES, ([one], []))
    with lockstep.running():
        lockstep.move(0, None)
        lockstep.read(1)
        lockstep.move(1, scaled)
        lockstep.read(2)
    expected = model.first(given(0))
    for found in moved:
        expected = model.second(expected) + 1
        assert torch.equal(found, expected)
    assert len(moved) == 3
    assert maps[1] is not None


def test_a_site_between_the_visits_of_another_is_read_between_them() -> None:
    def way(toy: Toy, x: torch.Tensor) -> None:
        toy.second(torch.tanh(toy.first(torch.tanh(toy.third(torch.tanh(toy.first(x)))))))

    check(Toy(way), ["first", "third", "second"])


# Maps.


@pytest.mark.parametrize("transport", [None, shifted(4, 0.0)], ids=["none", "identity"])
def test_maps_that_move_nothing_leave_every_bit(transport: TransportMap | None) -> None:
    ends = list[torch.Tensor]()
    model = Toy(lambda toy, x: ends.append(straight(toy, x)))
    go_through(lockstep_of(modules_of(model), SITES, sides_of(model)), transport)
    assert len(ends) == 5
    for seed, end in enumerate(ends):
        assert torch.equal(end, straight(model, given(seed, rows=2 + seed % 2)))


@pytest.mark.parametrize("num_known", [1, 2, 3])
def test_maps_that_are_given_before_stop_nobody_and_give_the_same_bits(num_known: int) -> None:
    ends = list[torch.Tensor]()
    model = Toy(lambda toy, x: ends.append(straight(toy, x)))
    sides = sides_of(model)
    maps = one_after_another(modules_of(model), SITES, sides)
    assert_same(in_lockstep(modules_of(model), SITES, sides, known=maps[:num_known]), maps)
    runs = []
    for known in (num_known, 0):
        ends.clear()
        lockstep = lockstep_of(modules_of(model), SITES, sides)
        for site in range(known):
            lockstep.move(site, maps[site])
        with lockstep.running():
            for site in range(known, 3):
                lockstep.read(site)
                lockstep.move(site, maps[site])
            lockstep.read(3)
        runs.append([end.clone() for end in ends])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert len(runs[0]) == 5


class Nomad(AbstractMap):
    """A map that does nothing, on whatever device it is sent to."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    @property
    def num_neurons(self) -> int:
        return 4

    @property
    def moves(self) -> torch.Tensor:
        return torch.ones(4, dtype=torch.bool)

    def __call__(self, x: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        assert x.device == self.device, f"an activation on {x.device}, a map on {self.device}"
        return x.clone()

    def at(self, strength: float) -> "Nomad":
        return self

    def to(self, device: torch.device | str) -> "Nomad":
        self.device = torch.device(device)
        return self

    def of(self, neurons: slice) -> "Nomad":
        return self

    def restricted_to(self, chosen: torch.Tensor) -> "Nomad":
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}


def test_a_map_that_is_given_before_any_forward_goes_to_its_device() -> None:
    model, nomad = Toy(straight).to("meta"), Nomad()
    lockstep = lockstep_of(modules_of(model), SITES, ([Batch(lambda: model(given(0).to("meta")))], []), "mean")
    lockstep.move(0, nomad)
    with lockstep.running():
        lockstep.read(1)
    assert nomad.device.type == "meta"


def test_tokens_of_the_source_are_seen_before_they_are_moved() -> None:
    seen = list[tuple[int, int, torch.Tensor]]()
    model = Toy(straight)
    sides = sides_of(model)

    def take(site: int, number: int, tokens: torch.Tensor) -> None:
        seen.append((site, number, tokens))

    lockstep = lockstep_of(modules_of(model), SITES, sides, pooling="last", tokens=take)
    with lockstep.running():
        for site in range(3):
            lockstep.read(site)
            lockstep.move(site, shifted(4, 1.0) if site == 0 else None)
    assert [place for *place, _ in seen] == [[site, number] for site in range(3) for number in range(3)]
    for seed in range(3):
        first = model.first(given(seed, rows=2 + seed % 2))
        assert torch.equal(seen[seed][2], first.reshape(-1, 4))
        assert torch.equal(seen[3 + seed][2], model.second(torch.tanh(first + 1)).reshape(-1, 4))


@pytest.mark.parametrize("form", [tuple, list, "named", dict])
def test_outputs_of_several_parts(form: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.inner(x)
            if form is dict:
                return {"activation": x, "other": "kept"}
            return Pair(x, "kept") if form == "named" else form([x, "kept"])

    kinds = list[Any]()

    def way(toy: Toy, x: torch.Tensor) -> None:
        found = toy.second(torch.tanh(toy.first(x)))
        kinds.append((type(found), found["other"] if form is dict else found[1]))
        toy.third(torch.tanh(found["activation"] if form is dict else found[0]))

    model = Toy(way)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model.second = Wrapped().requires_grad_(False).eval()
    check(model, ["first", "second", "third"])
    assert set(kinds) == {(Pair if form == "named" else form, "kept")}


def test_two_places_of_one_output() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(x), self.other(x)

    def way(toy: Toy, x: torch.Tensor) -> None:
        one, other = toy.second(torch.tanh(toy.first(x)))
        toy.third(torch.tanh(one) * other)

    model = Toy(way)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.second = Both().requires_grad_(False).eval()
    check(model, ["first", "second:0", "second:1", "third"])


@pytest.mark.parametrize("training", ["first", ""])
def test_training_mode_is_refused(training: str) -> None:
    model = Toy(straight)
    model.get_submodule(training).train()
    with pytest.raises(LockstepStateError, match="training mode"):
        lockstep_of(modules_of(model), SITES, sides_of(model))
    assert hooks(model) == 0
