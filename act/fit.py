"""Fitting in memory: a steer from batches of a module at hand, without Ray, a store or a spec."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from act.capture import Capture, Sink, discover
from act.errors import EmptyMarginalError, EstimationError
from act.estimation import Fitted, Sequential
from act.fingerprint import fingerprint
from act.hookpoint import Hookpoint, modules_of, select
from act.pooling import Pooling, TokenSpans
from act.site_fit import SiteLaws, describe, fit_site
from act.steer import Steer
from act.tokens import TokenLaws
from act.transport import Transport, scores
from act.transport import select as choose
from schemas.card import FORMAT_VERSION, Card, SideCard
from schemas.plan import Site

#: What a module's forward takes, by name. `attention_mask` `[batch, tokens]`, if there, says which tokens are real.
Batch = Mapping[str, Any]

#: The batches of the source, and those of the target.
_Sides = tuple[list[Batch], list[Batch]]


def fit_steer(
    model: nn.Module,
    source: Iterable[Batch],
    target: Iterable[Batch],
    hookpoints: str | Sequence[str] = "layernorms",
    pooling: Pooling = "mean",
    transport: Transport = Transport(),  # noqa: B008 - a frozen value
    estimation: Literal["simultaneous", "sequential"] | Sequential = "simultaneous",
) -> Steer:
    """Returns the steer that moves the model's activations on source batches to those on target batches.

    Args:
        model: The module. Its mode is kept; put it into evaluation mode first.
        source: Batches of the source side, each what ``model(**batch)`` takes.
        target: Batches of the target side; pairs are not needed, numbers may differ.
        hookpoints: Where to steer: one or several presets or patterns, see `act.hookpoint.select`.
        pooling: How the real tokens of a prompt become its sample.
        transport: The method, and where its maps apply.
        estimation: ``simultaneous`` fits every site on the model as it is. ``sequential`` fits each on activations that
            the maps before it have moved, for about the same price; it needs greenlet, all batches are in flight at
            once, and a site that is called several times takes its map from the first call. `Sequential` has
            half measures.

    Raises:
        HookpointNotFoundError: A preset or pattern matches no module.
        SiteVisitError: A site is not called exactly once in a forward; of a sequential fit, is not called.
        ShapeError: A site's output has not one vector a token.
        EmptyRowError: A row of an attention mask has no real token.
        EmptyMarginalError: A side has no batches.
        NotFiniteError: An activation is NaN or infinite.
        UnknownPoolingError: There is no such pooling.
        UnknownMethodError: There is no such method.
        PairsError: The method is ``actadd`` and the sides differ in their number of samples.
        EstimationError: There is no such estimation, or the steer that it starts from has other sites.
        LockstepStateError: A sequential fit of a model that is in training mode, or writes into its own tensors.
        SelectionError: A sequential fit with a selection that ranks across the model.
    """
    modules = modules_of(model)
    batches = list(source), list(target)
    if not batches[0] or not batches[1]:
        raise EmptyMarginalError(0)
    chosen = select(hookpoints, modules)
    if estimation == "simultaneous":
        fitted = _fit_at_once(model, modules, chosen, batches, pooling, transport)
    else:
        how = Sequential() if estimation == "sequential" else estimation
        if not isinstance(how, Sequential):
            raise EstimationError("name", how, "simultaneous, sequential, or a Sequential")
        estimation, fitted = how, _fit_in_turn(model, modules, chosen, batches, pooling, transport, how)
    return Steer(_card(model, pooling, transport, str(estimation), fitted), fitted.maps)


def _fit_at_once(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    batches: _Sides,
    pooling: Pooling,
    transport: Transport,
) -> Fitted:
    """Fits every site on the model as it is; with a selection all are scored before the first is fitted."""
    first = batches[0][0]
    sites = discover(modules, hookpoints, partial(_forward, model, first), tokens=_num_tokens(first))
    tokens = TokenLaws([site.width for site in sites])
    sides = _read(model, sites, pooling, batches[0], tokens), _read(model, sites, pooling, batches[1])
    laws = [SiteLaws.of(pair, tokens.law(number)) for number, pair in enumerate(zip(*sides, strict=True))]
    chosen: Sequence[torch.Tensor | None] = [None] * len(sites)
    if transport.select is not None:
        chosen = choose(transport.select, [scores(transport.select.by, one.source, one.target) for one in laws])
    found = [fit_site(site, transport, one, mine) for site, one, mine in zip(sites, laws, chosen, strict=True)]
    maps = {site.hookpoint: one for site, (one, _) in zip(sites, found, strict=True)}
    return Fitted(maps, [line for _, line in found], (len(sides[0][0]), len(sides[1][0])))


def _fit_in_turn(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    batches: _Sides,
    pooling: Pooling,
    transport: Transport,
    how: Sequential,
) -> Fitted:
    """Fits one site after the other."""
    from act.lockstep import Passage  # needs greenlet, which the loader does not
    from act.sequential import fit_sequentially, survey

    modules = {"": model, **modules}
    together = [*batches[0], *batches[1]]
    shown = together if how.unreached == "skip" else [_first_row(max(together, key=_length))]
    forwards = [partial(_forward, model, batch) for batch in shown]
    sites, turn = survey(modules, hookpoints, forwards, _num_tokens(shown[0]))
    source, target = (
        [Passage(partial(_forward, model, batch), _spans(batch), moved) for batch in side]
        for side, moved in zip(batches, (True, False), strict=True)
    )
    return fit_sequentially(modules, sites, source, target, pooling, transport, how, turn)


def _first_row(batch: Batch) -> Batch:
    """Returns a batch of one row, for a dry run; the whole batch where it is not known what its rows are."""
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim]
    if len({len(value) for value in tensors}) != 1:
        return batch
    return {
        name: value[:1] if isinstance(value, torch.Tensor) and value.ndim else value for name, value in batch.items()
    }


def _length(batch: Batch) -> int:
    """Returns how many tokens the rows of a batch have, if its tensors are `[batch, tokens, ...]`."""
    return max(
        (value.shape[1] for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim > 1), default=0
    )


def _num_tokens(batch: Batch) -> int | None:
    mask = batch.get("attention_mask")
    return None if mask is None else int(mask.shape[-1])


def _spans(batch: Batch) -> TokenSpans | None:
    mask = batch.get("attention_mask")
    return None if mask is None else TokenSpans.from_mask(mask)


def _card(model: nn.Module, pooling: Pooling, transport: Transport, estimation: str, fitted: Fitted) -> Card:
    source, target = (SideCard(number, 0, number, 0, 0, "") for number in fitted.num_samples)
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
        estimation=estimation,
        sites=tuple(fitted.lines),
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
            with capture.batch(_spans(batch)):
                _forward(model, batch)
    return [torch.cat(parts) for parts in pooled]


def _forward(model: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        model(**batch)
