"""The fit: stored samples become laws, laws become maps, maps become a steer."""

from collections.abc import Callable, Sequence

import torch

from act.fit import describe, site_card
from act.marginal import Marginal
from act.steer import Steer
from act.transport import Support, TransportMap
from act.transport import fit as fit_map
from pipeline.errors import NothingLeftError
from pipeline.store import ActivationStore
from schemas.card import Card, SideCard, SiteCard
from schemas.plan import Plan, SideName
from schemas.receipt import Receipt


def fit(
    plan: Plan,
    store: ActivationStore,
    receipts: Sequence[Receipt],
    on_site: Callable[[], None] = lambda: None,
) -> Steer:
    """Returns the steer of a run whose units are all done. One site at a time is in memory.

    Args:
        plan: The plan.
        store: Its activations.
        receipts: The receipts of all units.
        on_site: Called after each site.

    Raises:
        NothingLeftError: Every prompt of a side is quarantined.
        DamagedRunError: The store does not hold what the receipts say.
    """
    sides: dict[SideName, list[Receipt]] = {
        name: sorted((r for r in receipts if r.side == name), key=lambda receipt: receipt.unit)
        for name in ("source", "target")
    }
    cards = {name: _side_card(plan, name, sides[name]) for name in sides}
    maps: dict[str, TransportMap] = {}
    lines: list[SiteCard] = []
    transport = plan.spec["transport"]
    support = _support(transport["support"])
    for site in plan.sites:
        columns = plan.columns[site.hookpoint]
        laws = [_law(store, name, columns, sides[name]) for name in sides]
        maps[site.hookpoint] = fit_map(transport["method"], *laws, support=support)
        lines.append(site_card(site, maps[site.hookpoint], laws[0]))
        on_site()
    card = Card(
        format_version=1,
        name=plan.spec["name"],
        kind=plan.model.kind,
        method=transport["method"],
        support=describe(support),
        pooling=plan.spec["pooling"],
        template=plan.spec["template"],
        estimation=plan.spec["estimation"],
        sites=tuple(lines),
        timesteps=plan.timesteps,
        source=cards["source"],
        target=cards["target"],
        model_fingerprint=receipts[0].model,
        checkpoint_fingerprint=plan.model.fingerprint,
        numerics=vars(plan.numerics),
        plan=plan.fingerprint,
        spec=plan.spec,
        tensors="",
    )
    return Steer(card, maps)


def _law(store: ActivationStore, name: SideName, columns: slice, receipts: Sequence[Receipt]) -> Marginal:
    return Marginal.from_samples(torch.from_numpy(store.samples(name, columns, receipts)))


def _support(written: str | Sequence[float]) -> Support:
    if isinstance(written, str):
        return "unbounded" if written == "unbounded" else "observed"
    low, high = written
    return float(low), float(high)


def _side_card(plan: Plan, name: SideName, receipts: Sequence[Receipt]) -> SideCard:
    side = plan.side(name)
    kept = (min(tokens, plan.rows_per_prompt) for receipt in receipts for tokens in receipt.num_tokens)
    num_samples = sum(kept)
    if num_samples == 0:
        reasons = [f"{name} row {lost.row} ({lost.reason})" for receipt in receipts for lost in receipt.quarantined]
        raise NothingLeftError(side.num_prompts, 0, reasons[:3])
    return SideCard(
        num_prompts=side.num_prompts,
        num_samples=num_samples,
        num_quarantined=sum(len(receipt.quarantined) for receipt in receipts),
        num_truncated=sum(receipt.num_truncated for receipt in receipts),
        fingerprint=side.fingerprint,
    )
