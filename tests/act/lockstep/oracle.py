"""The slow way to fit site after site, which knows nothing of forwards that wait: each site runs all of them again.

For site `k` every batch's forward starts from its beginning, with the maps of the sites before it at every call of
their modules when the batch is of the source. What the first call of the site's module returns is read, before a map of
its own, and there that forward is given up.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from act.hookpoint import Hookpoint
from act.marginal import Marginal
from act.pooling import Pooling, TokenSpans, as_tokens, channel_axis, pool
from act.transport import AbstractMap, fit


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch.

    Args:
        run: Runs the model on it.
        spans: Its real tokens; None when all are real.
    """

    run: Callable[[], object]
    spans: TokenSpans | None = None


#: The batches of the source, whose forwards are moved, and those of the target.
Sides = tuple[Sequence[Batch], Sequence[Batch]]

#: A map for each site, in their order; None for a site that one side does not visit.
Maps = list[AbstractMap | None]


class _Read(Exception):
    """The site has been read."""


def one_after_another(
    modules: Mapping[str, nn.Module],
    sites: Sequence[str],
    sides: Sides,
    pooling: Pooling = "mean",
    method: str = "linear",
) -> Maps:
    """Returns the map of each site, fitted on what the maps before it leave of the source."""
    maps: Maps = []
    for place, site in enumerate(sites):
        before = dict(zip(sites[:place], maps, strict=True))
        maps.append(one_map(modules, site, sides, pooling, method, before))
    return maps


def one_map(
    modules: Mapping[str, nn.Module],
    site: str,
    sides: Sides,
    pooling: Pooling = "mean",
    method: str = "linear",
    before: Mapping[str, AbstractMap | None] = MappingProxyType({}),
) -> AbstractMap | None:
    """Returns the map of one site when those of some others are applied; with none of them, the simultaneous one."""
    source = [sample(modules, before, site, batch, pooling) for batch in sides[0]]
    target = [sample(modules, {}, site, batch, pooling) for batch in sides[1]]
    return fitted(source, target, method)


def sample(
    modules: Mapping[str, nn.Module],
    before: Mapping[str, AbstractMap | None],
    site: str,
    batch: Batch,
    pooling: Pooling,
) -> torch.Tensor | None:
    """Returns what one forward has at a site, `[samples, neurons]`; None if it does not get there."""
    found: list[torch.Tensor] = []

    def read(hookpoint: Hookpoint, output: Any) -> None:
        tokens = as_tokens(hookpoint.of(output))
        spans = batch.spans or TokenSpans.full(tokens.shape[0], tokens.shape[1])
        found.append(pool(pooling, tokens, spans))
        raise _Read

    def move(transport: AbstractMap, hookpoint: Hookpoint, output: Any) -> Any:
        tensor = hookpoint.of(output)
        axis = channel_axis(tensor)
        return hookpoint.put(output, transport(tensor.movedim(axis, -1)).movedim(-1, axis))

    with ExitStack() as stack:
        for name, transport in before.items():
            if transport is not None:
                stack.enter_context(_hook(modules, name, partial(move, transport)))
        stack.enter_context(_hook(modules, site, read))
        with suppress(_Read):
            batch.run()
    return found[0] if found else None


def fitted(
    source: Sequence[torch.Tensor | None], target: Sequence[torch.Tensor | None], method: str
) -> AbstractMap | None:
    """Returns the map between what came from both sides, batch after batch; None if nothing came from one."""
    sides = [[part for part in side if part is not None] for side in (source, target)]
    if not all(sides):
        return None
    samples = torch.cat(sides[0]), torch.cat(sides[1])
    laws = Marginal.from_samples(samples[0]), Marginal.from_samples(samples[1])
    return fit(method, *laws, samples=samples)


def assert_same(found: Maps, wanted: Maps) -> None:
    """Fails unless all parts of all maps have the same bits."""
    assert len(found) == len(wanted)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert (one is None) == (other is None), number
        if one is None or other is None:
            continue
        assert type(one) is type(other)
        assert {name for name, part in one.tensors().items() if not torch.equal(part, other.tensors()[name])} == set()


def _hook(modules: Mapping[str, nn.Module], site: str, hook: Callable[[Hookpoint, Any], Any]) -> Any:
    hookpoint = Hookpoint.parse(site)
    return modules[hookpoint.module].register_forward_hook(lambda module, args, output: hook(hookpoint, output))
