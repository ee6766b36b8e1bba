"""Fitting in memory: a steer from batches of a module at hand, without Ray, a store or a spec."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from act.capture import Capture, Sink, discover
from act.errors import EmptyMarginalError
from act.fingerprint import fingerprint
from act.hookpoint import modules_of, select
from act.marginal import Marginal
from act.pooling import Pooling, TokenSpans
from act.steer import Steer
from act.tokens import TokenLaws
from act.transport import AbstractMap, Samples, Support, Transport, scores
from act.transport import fit as fit_map
from act.transport import select as choose
from act.transport.affine import LARGEST
from schemas.card import FORMAT_VERSION, Card, SideCard, SiteCard
from schemas.plan import Site

#: What a module's forward takes, by name. `attention_mask` `[batch, tokens]`, if there, says which tokens are real.
Batch = Mapping[str, Any]

#: Samples of each site, `[samples, neurons]`, on the source side and on the target side.
_Sides = tuple[list[torch.Tensor], list[torch.Tensor]]


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
        PairsError: The method is ``actadd`` and the sides differ in their number of samples.
    """
    modules = modules_of(model)
    batches = list(source), list(target)
    if not batches[0] or not batches[1]:
        raise EmptyMarginalError(0)
    first = batches[0][0]
    mask = first.get("attention_mask")
    num_tokens = None if mask is None else mask.shape[-1]
    sites = discover(modules, select(hookpoints, modules), lambda: _forward(model, first), tokens=num_tokens)
    tokens = TokenLaws([site.width for site in sites])
    sides = _read(model, sites, pooling, batches[0], tokens), _read(model, sites, pooling, batches[1])
    maps, lines = _fit_sites(sites, transport, sides, tokens)
    return Steer(_card(model, pooling, transport, lines, (len(sides[0][0]), len(sides[1][0]))), maps)


def site_card(
    site: Site, transport: AbstractMap, source: Marginal, tokens: Marginal | None, misfit: int = 0
) -> SiteCard:
    """Returns the line of the card that says what a map does to the law it was fitted on.

    Args:
        site: The site.
        transport: Its map.
        source: Law of its source.
        tokens: Law of single source tokens; None where the source's samples are single tokens.
        misfit: Neurons whose sketch had a frame that did not fit.
    """
    spread = source.deviation > 0
    moved, errors = (
        (of[spread] / source.deviation[spread]).clamp(max=LARGEST)
        for of in (transport.displacement(source), transport.error.double())
    )
    inside = transport.transported(source)
    return SiteCard(
        hookpoint=site.hookpoint,
        module_type=site.module_type,
        width=site.width,
        displacement=float(moved.mean()) if len(moved) else 0.0,
        transported=float(inside.mean()),
        tokens_transported=float((inside if tokens is None else transport.transported(tokens)).mean()),
        neurons_transported=float(transport.moves.double().mean()),
        error_median=float(errors.median()) if len(errors) else 0.0,
        error_worst=float(errors.max()) if len(errors) else 0.0,
        misfit=misfit,
    )


def describe(support: Support) -> str:
    """Returns a support as it is written on a card."""
    return support if isinstance(support, str) else f"[{support[0]:g}, {support[1]:g}]"


def _fit_sites(
    sites: Sequence[Site], transport: Transport, sides: _Sides, tokens: TokenLaws
) -> tuple[dict[str, AbstractMap], list[SiteCard]]:
    """Returns the map and the card of each site; with a selection all sites are scored before the first is fitted."""
    pairs = list(zip(*sides, strict=True))
    chosen: list[torch.Tensor] | None = None
    if transport.select is not None:
        chosen = choose(transport.select, [scores(transport.select.by, *_laws(pair)) for pair in pairs])
    maps: dict[str, AbstractMap] = {}
    lines: list[SiteCard] = []
    for number, (site, samples) in enumerate(zip(sites, pairs, strict=True)):
        source, target = _laws(samples)
        single = tokens.law(number)
        fitted = fit_map(
            transport.method,
            source,
            target,
            support=transport.where,
            tokens=single,
            threshold=transport.threshold,
            samples=samples,
        )
        maps[site.hookpoint] = fitted if chosen is None else fitted.restricted_to(chosen[number])
        lines.append(site_card(site, maps[site.hookpoint], source, single))
    return maps, lines


def _laws(samples: Samples) -> tuple[Marginal, Marginal]:
    return Marginal.from_samples(samples[0]), Marginal.from_samples(samples[1])


def _card(
    model: nn.Module, pooling: Pooling, transport: Transport, sites: Sequence[SiteCard], num_samples: tuple[int, int]
) -> Card:
    source, target = (SideCard(number, 0, number, 0, 0, "") for number in num_samples)
    return Card(
        format_version=FORMAT_VERSION,
        name="in-memory",
        kind="module",
        method=transport.method,
        support=describe(transport.where),
        threshold=transport.threshold,
        select=str(transport.select or ""),
        law="exact",
        pooling=pooling,
        template="plain",
        estimation="simultaneous",
        sites=tuple(sites),
        timesteps=(),
        source=source,
        target=target,
        model_fingerprint=fingerprint(model),
        checkpoint_fingerprint="",
        numerics={"torch": str(torch.__version__), "threads": torch.get_num_threads()},
        plan="",
        spec={},
        tensors="",
    )


def _read(
    model: nn.Module, sites: Sequence[Site], pooling: Pooling, batches: Sequence[Batch], tokens: Sink | None = None
) -> list[torch.Tensor]:
    """Returns the samples of each site, `[samples, neurons]`, in the order of the batches."""
    pooled: list[list[torch.Tensor]] = [[] for _ in sites]
    capture = Capture(
        modules_of(model), sites, pooling, lambda site, sample: pooled[site].append(sample.cpu()), tokens=tokens
    )
    with capture.reading():
        for batch in batches:
            mask = batch.get("attention_mask")
            with capture.batch(None if mask is None else TokenSpans.from_mask(mask)):
                _forward(model, batch)
    return [torch.cat(parts) for parts in pooled]


def _forward(model: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        model(**batch)
