"""What forwards change in the modules of a model is found, and each forward can have its own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import act
from act.errors import LockstepStateError
from act.hookpoint import modules_of, select
from act.lockstep.module_state import Isolation, ModuleState
from act.marginal import Marginal
from act.sequential import survey
from tests.act.lockstep.engine import in_lockstep
from tests.act.lockstep.models import Case, language_model, with_texts
from tests.act.lockstep.oracle import Batch, assert_same, one_after_another
from tests.architectures import CONFIGS, FURTHER, run

#: What forwards of families replace: a state that the next forward does not read, and a flag that weights are rescaled.
REPLACED = {
    "recurrent_gemma": ["model.layers.0.temporal_block.rg_lru.recurrent_states"],
    "rwkv": ["rwkv.layers_are_rescaled"],
}

#: What dynamic RoPE replaces.
ROPE = ["model.rotary_emb.inv_freq", "model.rotary_emb.max_seq_len_cached"]


def dynamic_llama() -> Case:
    """Returns a model whose table of frequencies grows with the longest batch that it has seen, here the first."""
    plain = CONFIGS["llama"].to_dict()
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**(plain | {"max_position_embeddings": 8, "rope_parameters": rope}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    case = with_texts(model, "llama")
    return replace(case, sides=(case.sides[0][::-1], case.sides[1]))


class Inner(nn.Module):
    """Changes itself, as a function says."""

    def __init__(self, change: Callable[["Inner"], None]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("table", torch.ones(3))
        self.plain, self.calls, self.share, self.mode = torch.ones(3), 0, 0.5, "short"
        self.longest: int | None = None
        self.register_buffer("absent", None)
        self._change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._change(self)
        return x + self.weight


def state_after(change: Callable[[Inner], None]) -> tuple[nn.Module, ModuleState]:
    model = nn.Sequential(Inner(change))
    state = ModuleState(modules_of(model))
    with torch.inference_mode():
        model(torch.zeros(2, 3))
    return model, state


def set_to(name: str, value: Any) -> Callable[[Inner], None]:
    return lambda inner: setattr(inner, name, value)


def add_to(name: str) -> Callable[[Inner], None]:
    return lambda inner: getattr(inner, name).add_(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", nn.Parameter(torch.ones(3), requires_grad=False)),
        ("table", torch.ones(3)),
        ("plain", torch.ones(3)),
        ("plain", None),
        ("calls", 1),
        ("calls", False),
        ("share", 0.25),
        ("mode", "long"),
        ("longest", 12),
        ("longest", torch.ones(())),
        ("absent", torch.ones(2)),
        ("new", 3),
        ("new", torch.ones(2)),
    ],
)
def test_what_is_replaced_is_found_and_put_back(name: str, value: Any) -> None:
    model, state = state_after(set_to(name, value))
    assert state.replaced() == [f"0.{name}"]
    assert state.written() == []
    state.restore(state.replaced())
    assert state.replaced() == []
    assert getattr(model.get_submodule("0"), name, None) is not value


def test_what_is_taken_away_is_found_and_put_back() -> None:
    model, state = state_after(lambda inner: delattr(inner, "plain"))
    assert state.replaced() == ["0.plain"]
    state.restore(["0.plain"])
    assert state.replaced() == []
    assert isinstance(model.get_submodule("0").plain, torch.Tensor)


@pytest.mark.parametrize(("name", "value"), [("calls", 0), ("share", 0.5), ("mode", "short"), ("longest", None)])
def test_equal_numbers_are_no_change(name: str, value: Any) -> None:
    assert state_after(set_to(name, value))[1].replaced() == []


@pytest.mark.parametrize("name", ["weight", "table", "plain"])
def test_what_is_written_to_is_found(name: str) -> None:
    _, state = state_after(add_to(name))
    assert state.written() == [f"0.{name}"]
    assert state.replaced() == []


@pytest.mark.parametrize("family", sorted({*CONFIGS, *FURTHER}))
def test_what_forwards_of_families_change(family: str) -> None:
    case = language_model(family)
    state = ModuleState(case.modules)
    for side in case.sides:
        for batch in side:
            batch.run()
    assert state.replaced() == REPLACED.get(family, [])
    assert bool(state.written()) == (family == "rwkv")


def test_a_model_that_is_refused_is_as_after_a_forward() -> None:
    config = copy.deepcopy(FURTHER["rwkv"])
    config.rescale_every = 1
    model, other = (transformers.AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    other.load_state_dict(model.state_dict())
    forward = partial(run, model)
    with pytest.raises(LockstepStateError, match=r"writes into rwkv\.blocks"):
        survey(modules_of(model), select("layernorms", modules_of(model)), [forward])
    run(other)
    assert torch.equal(run(model), run(other))


def test_a_forward_that_changes_the_model_is_found() -> None:
    case = dynamic_llama()
    state = ModuleState(case.modules)
    case.sides[0][-1].run()
    assert state.replaced() == []
    for side in case.sides:
        for batch in side:
            batch.run()
    assert state.replaced() == ROPE
    assert state.written() == []


def test_forwards_in_isolation_are_those_of_a_model_that_nobody_had_before() -> None:
    case, again = dynamic_llama(), dynamic_llama()
    sites, fresh = case.sites("norms"), ModuleState(again.modules)

    def alone(batch: Batch) -> None:
        fresh.restore(fresh.replaced())
        batch.run()

    source, target = ([replace(batch, run=partial(alone, batch)) for batch in side] for side in again.sides)
    wanted = one_after_another(again.modules, sites, (source, target))
    isolated = dynamic_llama()
    state, turn = ModuleState(isolated.modules), Isolation(isolated.modules, ROPE).turn
    assert_same(in_lockstep(isolated.modules, sites, isolated.sides, turn=turn), wanted)
    assert state.replaced() == []
    meeting = dynamic_llama()
    with pytest.raises(AssertionError):
        assert_same(in_lockstep(meeting.modules, sites, meeting.sides), wanted)


class Growing(nn.Module):
    """Keeps the longest batch so far, and computes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.longest = nn.Linear(4, 4).requires_grad_(False), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.longest = max(self.longest, x.shape[1])
        return self.site(x * self.longest)


@pytest.mark.parametrize("estimation", ["sequential", act.Sequential(blocks=1)])
def test_a_source_batch_does_not_meet_what_a_target_batch_of_its_number_left(estimation) -> None:
    model = Growing().eval()
    draw = torch.Generator().manual_seed(0)
    source, target = ({"x": torch.randn(5, length, 4, generator=draw)} for length in (3, 9))
    fitted = act.fit_steer(model, [source], [target], "site", estimation=estimation).maps["site"]
    assert model.longest == 0
    alone = [Marginal.from_samples(model.site(side["x"] * side["x"].shape[1]).mean(1)) for side in (source, target)]
    torch.testing.assert_close(fitted.shift, act.transport.fit("linear", *alone).shift)
