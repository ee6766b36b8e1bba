"""Reading activations: which sites a forward visits, and each one pooled while the forward runs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn

from act.clock import AbstractClock, StillClock
from act.errors import ShapeError, SiteVisitError
from act.hookpoint import Hookpoint
from act.pooling import Pooling, TokenSpans, as_tokens, channel_axis, pool
from schemas.plan import Site

#: Takes the number of a site and its pooled activation `[samples, neurons]`.
Sink = Callable[[int, torch.Tensor], None]


def discover(
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    forward: Callable[[], object],
    clock: AbstractClock | None = None,
    tokens: int | None = None,
) -> tuple[Site, ...]:
    """Returns the sites that one forward visits, each exactly once, in execution order, as `visits` finds them.

    Raises:
        SiteVisitError: A hookpoint is never called, or more than once in one step.
        HookpointOutputError: A hookpoint's output is no tensor of floating-point numbers.
        ShapeError: Its tensor has no axis of neurons, or is not one a token.
    """
    found = visits(modules, hookpoints, forward, clock, tokens)
    for name, count in Counter(site.hookpoint for site in found).items():
        if count > 1:
            raise SiteVisitError(name, count)
    check_called(hookpoints, found)
    return found


def check_called(hookpoints: Iterable[Hookpoint], sites: Iterable[Site]) -> None:
    """Checks that each hookpoint has a site.

    Args:
        hookpoints: Hookpoints without a step.
        sites: Sites that were visited.

    Raises:
        SiteVisitError: One has none: it is never called.
    """
    places = {Hookpoint.parse(site.hookpoint).place for site in sites}
    for hookpoint in hookpoints:
        if hookpoint not in places:
            raise SiteVisitError(str(hookpoint), 0)


def visits(
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    forward: Callable[[], object],
    clock: AbstractClock | None = None,
    tokens: int | None = None,
) -> tuple[Site, ...]:
    """Returns the sites that one forward visits, one a visit, in the order of execution, not of registration.

    Args:
        modules: The model's modules by name.
        hookpoints: Hookpoints without a step; a denoiser visits each one once a step.
        forward: Runs the model once, on any batch.
        clock: The model's clock.
        tokens: Tokens of the batch, when every site must have one output a token; None when sites differ.

    Raises:
        HookpointOutputError: A hookpoint's output is no tensor of floating-point numbers.
        ShapeError: Its tensor has no axis of neurons, or is not one a token.
    """
    clock = clock or StillClock()
    found: list[Site] = []

    def look(hookpoint: Hookpoint, module: nn.Module, output: Any) -> None:  # noqa: ANN401
        tensor = hookpoint.of(output)
        rows = clock.rows(len(tensor))
        if tokens is not None and (tensor.ndim != 3 or tensor.shape[1] != tokens):
            raise ShapeError(f"the output of {hookpoint}", list(tensor.shape), f"[batch, {tokens} tokens, neurons]")
        if rows.stop > rows.start:
            here = Hookpoint(hookpoint.module, hookpoint.output, clock.step)
            found.append(Site(str(here), type(module).__name__, tensor.shape[channel_axis(tensor)]))

    with hooked(modules, hookpoints, look), clock.following():
        forward()
    return tuple(found)


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    hook: Callable[[Hookpoint, nn.Module, Any], Any],
) -> Iterator[None]:
    """A context in which `hook` sees each hookpoint's output, and replaces it when it returns something.

    Hooks leave the modules when the context ends, also after an exception, in the reverse order of their coming.
    """

    def bind(hookpoint: Hookpoint) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, args, output: hook(hookpoint, module, output)

    with ExitStack() as stack:
        for hookpoint in hookpoints:
            stack.enter_context(modules[hookpoint.module].register_forward_hook(bind(hookpoint)))
        yield


@final
class Capture:
    """Pools each site's output inside its hook, so that no full activation outlives its layer.

    Args:
        modules: The model's modules by name.
        sites: The sites, as `discover` returned them.
        pooling: How the real tokens of a prompt become its sample.
        sink: Takes the pooled activation of each site as soon as it exists.
        clock: The model's clock.
        tokens: Takes the activations of the real tokens of each site, `[tokens, neurons]`, as pooling ``all`` gives
            them, besides.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        sites: Sequence[Site],
        pooling: Pooling,
        sink: Sink,
        clock: AbstractClock | None = None,
        tokens: Sink | None = None,
    ) -> None:
        self._modules, self._pooling, self._sink, self._tokens = modules, pooling, sink, tokens
        self._clock = clock or StillClock()
        self._numbers = {Hookpoint.parse(site.hookpoint): number for number, site in enumerate(sites)}
        self._visits = [0] * len(sites)
        self._spans: TokenSpans | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context in which the forwards of the model are read."""
        places = dict.fromkeys(site.place for site in self._numbers)
        with self._clock.following(), hooked(self._modules, list(places), self._read):
            yield

    @contextmanager
    def batch(self, spans: TokenSpans | None) -> Iterator[None]:
        """A context for one micro-batch: its forward must visit every site exactly once.

        Args:
            spans: The real tokens of its rows; None when all are real.

        Raises:
            SiteVisitError: Some site was not visited, or visited more than once.
        """
        self._spans, self._visits = spans, [0] * len(self._visits)
        yield
        for site, number in self._numbers.items():
            if self._visits[number] != 1:
                raise SiteVisitError(str(site), self._visits[number])

    def _read(self, hookpoint: Hookpoint, module: nn.Module, output: Any) -> None:  # noqa: ANN401
        tensor = hookpoint.of(output)
        rows = self._clock.rows(len(tensor))
        number = self._numbers.get(Hookpoint(hookpoint.module, hookpoint.output, self._clock.step))
        if number is None or rows.stop == rows.start:
            return
        tokens = as_tokens(tensor[rows])
        spans = self._spans or TokenSpans.full(tokens.shape[0], tokens.shape[1])
        self._visits[number] += 1
        self._sink(number, pool(self._pooling, tokens.detach(), spans))
        if self._tokens is not None:
            self._tokens(number, pool("all", tokens.detach(), spans))
