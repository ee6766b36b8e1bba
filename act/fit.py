"""Fitting in memory: a steer from batches of a module at hand, without Ray, a store or a spec."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from act.capture import Capture, discover
from act.errors import EmptyMarginalError
from act.fingerprint import fingerprint
from act.hookpoint import modules_of, select
from act.marginal import Marginal
from act.pooling import Pooling, TokenSpans
from act.steer import Steer
from act.transport import Support, Transport, TransportMap
from act.transport import fit as fit_map
from schemas.card import Card, SideCard, SiteCard
from schemas.plan import Site

#: What a module's forward takes, by name. `attention_mask` `[batch, tokens]`, if there, says which tokens are real.
Batch = Mapping[str, Any]


def fit_steer(
    model: nn.Module,
    source: Iterable[Batch],
    target: Iterable[Batch],
    hookpoints: str | Sequence[str] = "layernorms",
    pooling: Pooling = "mean",
    transport: Transport = Transport(),  # noqa: B008 - a frozen value
) -> Steer:
    """Returns the steer that moves the model's activations on source batches to those on target batches.

    Args:
        model: The module. Its mode is kept; put it into evaluation mode first.
        source: Batches of the source side, each what ``model(**batch)`` takes.
        target: Batches of the target side; pairs are not needed, numbers may differ.
        hookpoints: Where to steer: one or several presets or patterns, see `act.hookpoint.select`.
        pooling: How the real tokens of a prompt become its sample.
        transport: The method, and where its maps apply.

    Raises:
        HookpointNotFoundError: A preset or pattern matches no module.
        SiteVisitError: A site is not called exactly once in a forward.
        ShapeError: A site's output has not one vector a token.
        EmptyRowError: A row of an attention mask has no real token.
        EmptyMarginalError: A side has no batches.
        NotFiniteError: An activation is NaN or infinite.
        UnknownPoolingError: There is no such pooling.
        UnknownMethodError: There is no such method.
    """
    modules = modules_of(model)
    batches = list(source), list(target)
    if not batches[0] or not batches[1]:
        raise EmptyMarginalError(0)
    first = batches[0][0]
    mask = first.get("attention_mask")
    num_tokens = None if mask is None else mask.shape[-1]
    sites = discover(modules, select(hookpoints, modules), lambda: _forward(model, first), tokens=num_tokens)
    laws = [_laws(model, sites, pooling, side) for side in batches]
    maps = {
        site.hookpoint: fit_map(transport.method, a, b, support=transport.support)
        for site, a, b in zip(sites, laws[0], laws[1], strict=True)
    }
    card = Card(
        format_version=1,
        name="in-memory",
        kind="module",
        method=transport.method,
        support=describe(transport.support),
        pooling=pooling,
        template="plain",
        estimation="simultaneous",
        sites=tuple(site_card(site, maps[site.hookpoint], law) for site, law in zip(sites, laws[0], strict=True)),
        timesteps=(),
        source=_side_card(laws[0][0]),
        target=_side_card(laws[1][0]),
        model_fingerprint=fingerprint(model),
        checkpoint_fingerprint="",
        numerics={"torch": str(torch.__version__), "threads": torch.get_num_threads()},
        plan="",
        spec={},
        tensors="",
    )
    return Steer(card, maps)


def site_card(site: Site, transport: TransportMap, source: Marginal) -> SiteCard:
    """Returns the line of the card that says what a map does to the law it was fitted on."""
    spread = source.variance.sqrt()
    moving = spread > 0
    moved = transport.displacement(source)[moving] / spread[moving]
    return SiteCard(
        hookpoint=site.hookpoint,
        module_type=site.module_type,
        width=site.width,
        displacement=float(moved.mean()) if len(moved) else 0.0,
        transported=float(transport.transported(source).mean()),
    )


def describe(support: Support) -> str:
    """Returns a support as it is written on a card."""
    return support if isinstance(support, str) else f"[{support[0]:g}, {support[1]:g}]"


def _laws(model: nn.Module, sites: Sequence[Site], pooling: Pooling, batches: Sequence[Batch]) -> list[Marginal]:
    pooled: list[list[torch.Tensor]] = [[] for _ in sites]
    capture = Capture(modules_of(model), sites, pooling, lambda site, sample: pooled[site].append(sample.cpu()))
    with capture.reading():
        for batch in batches:
            mask = batch.get("attention_mask")
            with capture.batch(None if mask is None else TokenSpans.from_mask(mask)):
                _forward(model, batch)
    return [Marginal.from_samples(torch.cat(parts)) for parts in pooled]


def _forward(model: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        model(**batch)


def _side_card(law: Marginal) -> SideCard:
    return SideCard(law.num_samples, law.num_samples, 0, 0, "")
