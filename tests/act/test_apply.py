import copy
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import act
from act.steer import Steer
from tests.architectures import run, tiny, tokens
from tests.steers import (
    make_quantile_map,
    moved_by,
    state,
    steer_for,
    window,
)

Pair = namedtuple("Pair", ["hidden", "extra"])


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Copies of a module's own outputs, before any hook changes them: register it before steering."""
    outputs: list[torch.Tensor] = []
    with module.register_forward_hook(lambda module, args, output: outputs.append(output.clone())):
        yield outputs


def test_strength_0_is_the_model_to_the_bit(llama: Any, steer: Steer) -> None:
    plain, before = run(llama), state(llama)
    with act.apply(steer, llama, strength=0.0):
        assert state(llama) == before
        assert torch.equal(run(llama), plain)


@pytest.mark.parametrize("strength", [0.5, 1.0, -1.0, 2.5])
def test_outputs_move_as_the_formula_says(llama: Any, strength: float) -> None:
    transport = window(32)
    steer = steer_for(llama, {"model.norm": transport})
    with recorded(llama.model.norm) as own, act.apply(steer, llama, strength=strength):
        found = llama.model(input_ids=tokens(2, 5)).last_hidden_state
    inside = (own[0].abs() <= 1).double().mean()
    assert 0.5 < inside < 0.8
    torch.testing.assert_close(found.double(), moved_by(transport, own[0], strength), rtol=1e-6, atol=1e-6)
    assert torch.equal(found[own[0].abs() > 1], own[0][own[0].abs() > 1])


@pytest.mark.parametrize("strength", [0.5, 1.0, -1.0])
def test_a_map_with_knots_moves_along_the_lines_between_them(llama: Any, strength: float, tmp_path: Path) -> None:
    transport = make_quantile_map(32, 0)
    steer_for(llama, {"model.norm": transport}).save(tmp_path / "steer")
    with recorded(llama.model.norm) as own, act.apply(act.load(tmp_path / "steer"), llama, strength=strength):
        found = llama.model(input_ids=tokens(2, 5)).last_hidden_state
    a, low, high = (part.double().numpy() for part in (own[0], transport.low, transport.high))
    wanted = a.copy()
    for neuron in range(32):
        x, y = (part[neuron].double().numpy() for part in (transport.knots_x, transport.knots_y))
        beyond = a[..., neuron] - a[..., neuron].clip(x[0], x[-1])
        wanted[..., neuron] = np.interp(a[..., neuron], x, y) + beyond
    wanted = np.where((a >= low) & (a <= high), (1 - strength) * a + strength * wanted, a)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert 0.3 < (wanted != a).mean() < 0.9


def test_a_site_whose_map_moves_nothing_gets_no_hook(llama: Any) -> None:
    none = window(32).restricted_to(torch.zeros(32, dtype=torch.bool))
    plain, before = run(llama), state(llama)
    with act.apply(steer_for(llama, {"model.norm": none}), llama):
        assert state(llama) == before
        assert torch.equal(run(llama), plain)


def test_every_site_is_moved_and_later_ones_see_it(llama: Any, steer: Steer) -> None:
    norm = llama.model.layers[0].input_layernorm
    plain, seen = run(llama), []
    attention = llama.model.layers[0].self_attn
    with recorded(norm) as own, act.apply(steer, llama, strength=0.5):
        spy = attention.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
        steered = run(llama)
        spy.remove()
    wanted = moved_by(steer.maps["model.layers.0.input_layernorm"], own[0], 0.5)
    torch.testing.assert_close(seen[0]["hidden_states"].double(), wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(steered, plain)


def test_leaving_restores_the_model_exactly(llama: Any, steer: Steer) -> None:
    plain, before = run(llama), state(llama)
    with act.apply(steer, llama):
        assert state(llama) != before
    assert state(llama) == before
    assert torch.equal(run(llama), plain)


def test_leaving_by_an_exception_restores_the_model(llama: Any, steer: Steer) -> None:
    before = state(llama)
    with pytest.raises(ZeroDivisionError), act.apply(steer, llama):
        raise ZeroDivisionError
    assert state(llama) == before
    with pytest.raises(IndexError), act.apply(steer, llama):
        run(llama, torch.full((1, 3), 10_000))
    assert state(llama) == before


def test_failing_half_way_in_restores_the_model(llama: Any, steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(llama)

    def refuse(hook: object) -> None:
        raise MemoryError

    monkeypatch.setattr(llama.model.layers[1].mlp, "register_forward_hook", refuse, raising=False)
    patched = state(llama)
    with pytest.raises(MemoryError), act.apply(steer, llama):
        pytest.fail("the context was entered")
    assert state(llama) == patched
    monkeypatch.undo()
    assert state(llama) == before


class Own(nn.Module):
    """Returns its own buffer, a view of its input, or its input itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("kept", torch.linspace(-2, 2, 12).reshape(3, 4))
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return {"buffer": self.kept, "weight": self.weight, "view": x[:, 1:], "input": x}[self.kind]


@pytest.mark.parametrize("kind", ["buffer", "weight", "view", "input"])
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_written_in_place(kind: str, grad: Any) -> None:
    model = nn.Sequential(Own(kind), nn.Identity())
    x = torch.linspace(-1, 1, 15).reshape(3, 5) if kind == "view" else torch.linspace(-1, 1, 12).reshape(3, 4)
    kept, before = copy.deepcopy(model.state_dict()), x.clone()
    transport = window(4)
    with grad(), act.apply(steer_for(model, {"0": transport}), model, strength=1.0):
        found = model(x)
    assert torch.equal(x, before)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found.double(), moved_by(transport, model(x), 1.0).to(found.dtype).double())


def test_two_steers_apply_in_the_order_of_entering(llama: Any) -> None:
    first, second = window(32, 1, reach=5), window(32, 2, reach=5)
    steers = [steer_for(llama, {"model.norm": transport}) for transport in (first, second)]
    plain, before = run(llama), state(llama)
    with (
        recorded(llama.model.norm) as own,
        act.apply(steers[0], llama, strength=0.5),
        act.apply(steers[1], llama, strength=1.0),
    ):
        found = llama.model(input_ids=tokens(2, 5)).last_hidden_state
    wanted = moved_by(second, moved_by(first, own[0], 0.5), 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert state(llama) == before
    assert torch.equal(run(llama), plain)


def test_the_same_steer_can_be_applied_again_and_within_itself(llama: Any, steer: Steer) -> None:
    with act.apply(steer, llama, strength=0.5):
        once = run(llama)
        with act.apply(steer, llama, strength=0.5):
            assert not torch.equal(run(llama), once)
        assert torch.equal(run(llama), once)
    with act.apply(steer, llama, strength=0.5):
        assert torch.equal(run(llama), once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_keeps_it(dtype: torch.dtype) -> None:
    model: Any = tiny("llama").to(dtype)
    transport = window(32)
    with (
        recorded(model.model.norm) as own,
        act.apply(steer_for(model, {"model.norm": transport}), model, strength=0.5),
    ):
        found = model.model(input_ids=tokens(2, 5)).last_hidden_state
    assert found.dtype == dtype
    wanted = moved_by(transport, own[0], 0.5)
    torch.testing.assert_close(found.double(), wanted, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


def test_maps_move_with_a_model_that_is_cast_after_fitting(llama: Any, steer: Steer) -> None:
    # The fingerprint rounds to bfloat16: a model fitted in float32 and served in bfloat16 is the same.
    with act.apply(steer, copy.deepcopy(llama).to(torch.bfloat16)):
        pass


def test_the_first_part_of_a_tuple_is_moved_and_the_others_kept(llama: Any) -> None:
    transport, seen = window(32), []
    steer = steer_for(llama, {"model.layers.0.self_attn": transport})
    attention = llama.model.layers[0].self_attn
    with attention.register_forward_hook(lambda m, args, output: seen.append(output)), act.apply(steer, llama):
        after = attention.register_forward_hook(lambda m, args, output: seen.append(output))
        run(llama)
        after.remove()
    assert type(seen[0]) is type(seen[1]) is tuple
    assert seen[1][1:] == seen[0][1:]
    torch.testing.assert_close(seen[1][0].double(), moved_by(transport, seen[0][0], 1.0), rtol=1e-6, atol=1e-6)


class Wrap(nn.Module):
    """Returns its input and what is made of it as some container."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        return self.kind(x, -x)


@pytest.mark.parametrize(
    "kind", [Pair, lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}], ids=list("ntld")
)
@pytest.mark.parametrize("place", [0, 1])
def test_any_part_of_any_container_is_moved(kind: Any, place: int) -> None:
    model = nn.Sequential(Wrap(kind))
    transport, x = window(4), torch.linspace(-1, 1, 8).reshape(2, 4)
    with act.apply(steer_for(model, {f"0:{place}": transport}), model):
        found = model(x)
    parts = list(found.values() if isinstance(found, dict) else found)
    assert type(found) is type(kind(x, x))
    torch.testing.assert_close(parts[place].double(), moved_by(transport, (x, -x)[place], 1.0))
    assert torch.equal(parts[1 - place], (x, -x)[1 - place])


def test_two_outputs_of_one_module_are_both_moved() -> None:
    model, x = nn.Sequential(Wrap(Pair)), torch.linspace(-1, 1, 8).reshape(2, 4)
    maps = {"0": window(4, 1), "0:1": window(4, 2)}
    with act.apply(steer_for(model, maps), model):
        found = model(x)
    torch.testing.assert_close(found.hidden.double(), moved_by(maps["0"], x, 1.0))
    torch.testing.assert_close(found.extra.double(), moved_by(maps["0:1"], -x, 1.0))


def test_channels_are_the_neurons_of_pixels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
    transport, x = window(5), torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with recorded(model[0]) as own, act.apply(steer_for(model, {"0": transport}), model, strength=0.5):
        found = model(x)
    wanted = moved_by(transport, own[0].permute(0, 2, 3, 1), 0.5).permute(0, 3, 1, 2).relu()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_gradients_flow_through_a_steered_model(llama: Any) -> None:
    transport = window(4, reach=10)
    model, x = nn.Sequential(nn.Identity()), torch.zeros(2, 4, requires_grad=True)
    with act.apply(steer_for(model, {"0": transport}), model, strength=1.0):
        model(x).sum().backward()
    torch.testing.assert_close(x.grad, transport.scale.expand(2, 4))


def generated(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(tokens(2, 4), attention_mask=torch.ones(2, 4), max_new_tokens=8, do_sample=False, **options)


def test_generation_is_steered_with_and_without_a_cache(llama: Any) -> None:
    transport = window(32, shift=3.0, reach=10.0)
    steer = steer_for(llama, {"model.layers.0.input_layernorm": transport, "model.norm": transport})
    plain = generated(llama)
    with act.apply(steer, llama, strength=1.0):
        cached, whole = generated(llama, use_cache=True), generated(llama, use_cache=False)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, plain)
    assert torch.equal(generated(llama), plain)


def test_generation_at_strength_0_is_that_of_the_model(llama: Any, steer: Steer) -> None:
    plain = generated(llama)
    with act.apply(steer, llama, strength=0.0):
        assert torch.equal(generated(llama), plain)
