import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from act.capture import Capture, hooked
from act.errors import SiteVisitError
from act.hookpoint import Hookpoint, modules_of
from act.pooling import POOLINGS, Pooling, TokenSpans, pool
from schemas.plan import Site
from tests.architectures import tiny, tokens
from tests.visiting import Backwards, hooks, look

#: The real tokens of three rows of seven, padded on the right and on the left.
RIGHT = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6])
LEFT = RIGHT.flip(1)
NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda real: real.mean(0),
    "max": lambda real: real.max(0),
    "min": lambda real: real.min(0),
    "median": lambda real: np.median(real, 0),
    "last": lambda real: real[-1],
    "all": lambda real: real,
}


def capture(
    model: nn.Module, pooling: Pooling, hookpoints: str, masks: list[torch.Tensor]
) -> tuple[list[Site], dict[str, torch.Tensor]]:
    """Sites and samples of a forward a mask, row after row."""
    sites = look(model, hookpoints, lambda: model(input_ids=tokens(1, 4)))
    samples: dict[str, list[torch.Tensor]] = {site.hookpoint: [] for site in sites}
    taken = Capture(modules_of(model), sites, pooling, lambda n, sample: samples[sites[n].hookpoint].append(sample))
    with taken.reading(), torch.inference_mode():
        for number, mask in enumerate(masks):
            with taken.batch(TokenSpans.from_mask(mask)):
                model(input_ids=tokens(len(mask), mask.shape[1], number), attention_mask=mask)
    return sites, {name: torch.cat(parts) for name, parts in samples.items()}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("masks", [[RIGHT], [LEFT], [RIGHT, LEFT[:2]]], ids=["right", "left", "both"])
def test_samples_are_those_of_a_reference(pooling: Pooling, masks: list[torch.Tensor]) -> None:
    model = tiny("gemma3_text")
    sites, samples = capture(model, pooling, "layernorms", masks)
    modules, wanted = modules_of(model), {site.hookpoint: list[np.ndarray]() for site in sites}
    for number, mask in enumerate(masks):
        for name, output in outputs_of(model, modules, list(wanted), number, mask).items():
            for row, real in zip(output.double().numpy(), mask.numpy() == 1, strict=True):
                wanted[name].append(np.atleast_2d(NUMPY[pooling](row[real])))
    assert len(sites) == 9
    for name, parts in wanted.items():
        np.testing.assert_allclose(samples[name].numpy(), np.concatenate(parts), rtol=2e-6, atol=2e-6)


def outputs_of(
    model: nn.Module, modules: dict[str, nn.Module], names: list[str], seed: int, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Whole outputs, by hooks of the test's own."""
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        modules[name].register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))
        for name in names
    ]
    with torch.inference_mode():
        model(input_ids=tokens(len(mask), mask.shape[1], seed), attention_mask=mask)
    for handle in handles:
        handle.remove()
    return outputs


def test_padding_does_not_count_whichever_side_it_is_on() -> None:
    model, ids = tiny("llama"), tokens(1, 3)
    alone, found = capture_ids(model, ids, torch.ones(1, 3)), {}
    for side, mask in (("right", RIGHT[1:2]), ("left", LEFT[1:2])):
        padded = torch.zeros(1, 7, dtype=torch.long)
        padded[mask == 1] = ids[0]
        # Positions are the model's own business: with left padding generate passes them.
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found[side] = capture_ids(model, padded, mask, position_ids=positions)
    for sample in found.values():
        torch.testing.assert_close(sample, alone, rtol=1e-5, atol=1e-5)


def capture_ids(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    sites = look(model, "layernorms", lambda: model(input_ids=ids))
    parts: list[torch.Tensor] = []
    taken = Capture(modules_of(model), sites, "mean", lambda number, sample: parts.append(sample))
    with taken.reading(), taken.batch(TokenSpans.from_mask(mask)), torch.inference_mode():
        model(input_ids=ids, attention_mask=mask, **inputs)
    return torch.cat(parts)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_single_tokens_are_given_besides_the_samples_in_the_same_forward(pooling: Pooling) -> None:
    model, samples, single, order = Backwards(), [], [], []

    def keep(number: int, values: torch.Tensor) -> None:
        single.append(values)
        order.append(number)

    sites = look(model, ["first", "optional"], lambda: model(torch.ones(2, 4)))
    taken = Capture(modules_of(model), sites, pooling, lambda number, sample: samples.append(sample), tokens=keep)
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    with taken.reading(), taken.batch(TokenSpans.from_mask(LEFT)):
        model(x)
    assert order == [0, 1]
    torch.testing.assert_close(single[0], model.first(x)[LEFT.bool()])
    assert torch.equal(samples[0], pool(pooling, model.first(x), TokenSpans.from_mask(LEFT)))


def test_without_spans_every_token_is_real() -> None:
    model, samples = Backwards(), []
    sites = look(model, "first", lambda: model(torch.ones(2, 4)))
    taken = Capture(modules_of(model), sites, "mean", lambda number, sample: samples.append(sample))
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    with taken.reading(), taken.batch(None):
        model(x)
    torch.testing.assert_close(samples[0], model.first(x).mean(1))
    assert not samples[0].requires_grad


def test_pixels_are_tokens_and_channels_are_neurons() -> None:
    model, samples = nn.Sequential(nn.Conv2d(3, 5, 1)), []
    sites = look(model, "0", lambda: model(torch.ones(2, 3, 4, 4)))
    taken = Capture(modules_of(model), sites, "max", lambda number, sample: samples.append(sample))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with taken.reading(), taken.batch(None):
        model(x)
    assert sites == [Site("0", "Conv2d", 5)]
    assert torch.equal(samples[0], model(x).amax((2, 3)))


class Watch(nn.Module):
    """A layer that tells how many earlier outputs of its kind are still alive when it runs."""

    alive: ClassVar[list[int]] = []
    outputs: ClassVar["list[weakref.ref[torch.Tensor]]"] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.alive.append(sum(output() is not None for output in self.outputs))
        y = x * 1.5
        self.outputs.append(weakref.ref(y))
        return y


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_activation_outlives_its_layer(pooling: Pooling) -> None:
    Watch.alive, Watch.outputs = [], []
    model, samples = nn.Sequential(*(Watch() for _ in range(6))), []
    sites = [Site(str(number), "Watch", 4) for number in range(6)]
    taken = Capture(modules_of(model), sites, pooling, lambda number, sample: samples.append(sample))
    with taken.reading(), taken.batch(TokenSpans.from_mask(RIGHT)):
        model(torch.ones(3, 7, 4))
    # The input of a layer is the one output that is alive while it runs.
    assert Watch.alive == [0, 1, 1, 1, 1, 1]
    assert [output() for output in Watch.outputs] == [None] * 6
    assert len(samples) == 6
    assert all(sample.untyped_storage().nbytes() == sample.numel() * 4 for sample in samples)


def test_a_site_that_a_batch_skips_is_an_error() -> None:
    model, seen = Backwards(), []
    sites = look(model, ["first", "optional"], lambda: model(torch.ones(2, 4)))
    taken = Capture(modules_of(model), sites, "mean", lambda number, sample: seen.append(number))
    with taken.reading():
        with taken.batch(None):
            model(torch.ones(2, 4))
        with pytest.raises(SiteVisitError, match="hookpoint optional is called never"), taken.batch(None):
            model(torch.ones(2, 4), skip=True)
        with pytest.raises(SiteVisitError, match="hookpoint first is called 2 times"), taken.batch(None):
            model(model(torch.ones(2, 4))[:, :4])
        with taken.batch(None):
            model(torch.ones(2, 4))
    assert seen == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_exception_in_the_sink_the_model_and_the_batch() -> None:
    model = Backwards()
    sites = look(model, ["first", "optional"], lambda: model(torch.ones(2, 4)))

    def fail(number: int, sample: torch.Tensor) -> None:
        raise ZeroDivisionError

    for x, error in ((torch.ones(2, 4), ZeroDivisionError), (torch.ones(2, 9), RuntimeError)):
        taken = Capture(modules_of(model), sites, "mean", fail)
        with pytest.raises(error), taken.reading(), taken.batch(None):
            model(x)
        assert hooks(model) == 0


def test_hooks_are_gone_when_hooking_fails_half_way() -> None:
    model = Backwards()
    with pytest.raises(KeyError, match="absent"), hooked(modules_of(model), [*points("first", "absent")], print):
        pytest.fail("the context was entered")
    assert hooks(model) == 0


def points(*names: str) -> Iterator[Hookpoint]:
    return (Hookpoint(name) for name in names)


def test_hooks_of_others_stay() -> None:
    model, calls = Backwards(), []
    with model.first.register_forward_hook(lambda *seen: calls.append("theirs")):
        before = dict(model.first._forward_hooks)
        with hooked(modules_of(model), [*points("first")], lambda *seen: calls.append("ours")):
            model(torch.ones(2, 4))
        assert dict(model.first._forward_hooks) == before
    assert calls == ["theirs", "ours"]


def test_reading_changes_neither_outputs_nor_mode() -> None:
    model, x = Backwards().train(), torch.ones(2, 4)
    plain = model(x)
    sites = look(model, "first", lambda: model(x))
    taken = Capture(modules_of(model), sites, "mean", lambda number, sample: None)
    with taken.reading(), taken.batch(None):
        assert torch.equal(model(x), plain)
    assert model.training


def test_gradients_still_flow_while_a_model_is_read() -> None:
    model, x = Backwards(), torch.ones(2, 4, requires_grad=True)
    sites = [Site("first", "Linear", 5)]
    taken = Capture(modules_of(model), sites, "mean", lambda number, sample: None)
    with taken.reading(), taken.batch(None):
        model(x).sum().backward()
    assert x.grad is not None
