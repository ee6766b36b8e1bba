"""The fit: laws become maps, maps become a steer."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from act.marginal import Marginal
from act.site_fit import SiteLaws, describe, fit_site
from act.steer import Steer
from act.transport import AbstractMap, Selection, Support, Transport, scores, select
from pipeline import machine
from pipeline.errors import NothingLeftError
from pipeline.laws import Laws
from pipeline.tally import SideTally, Tally
from schemas.card import FORMAT_VERSION, Card, SideCard, SiteCard
from schemas.plan import SIDES, Plan, SideName

Result = TypeVar("Result")


def fit(
    plan: Plan,
    laws: Laws,
    tally: Tally,
    on_site: Callable[[], None] = lambda: None,
    former: Steer | None = None,
) -> Steer:
    """Returns the steer of a run whose units are all done. A site a core is in memory.

    Args:
        plan: The plan.
        laws: Its laws.
        tally: What the receipts of all units say together.
        on_site: Called after each site.
        former: The steer whose maps, and lines of the card, are taken over as they are.

    Raises:
        NothingLeftError: Every prompt of a side is quarantined.
        DamagedRunError: A store does not hold what the receipts say.
    """
    sides = tuple(_side_card(plan, name, tally.sides[name]) for name in SIDES)
    transport = read_transport(plan)
    chosen = _chosen(plan, laws, transport.select)
    maps: dict[str, AbstractMap] = {}
    lines: list[SiteCard] = []
    taken = (
        {} if former is None else {line.hookpoint: (former.maps[line.hookpoint], line) for line in former.card.sites}
    )

    def fit_one(number: int) -> tuple[AbstractMap, SiteCard]:
        if plan.sites[number].hookpoint in taken:
            return taken[plan.sites[number].hookpoint]
        source, target = laws.marginal("source", number), laws.marginal("target", number)
        samples = _samples(laws, number) if transport.method == "iti-probe" else None
        found = SiteLaws(source, target, laws.tokens(number), samples, laws.misfits(number).left)
        mine = None if chosen is None else chosen[number]
        return fit_site(plan.sites[number], unpaired(transport, source, target), found, mine)

    for site, (fitted, line) in zip(plan.sites, over_sites(len(plan.sites), fit_one), strict=True):
        maps[site.hookpoint] = fitted
        lines.append(line)
        on_site()
    return Steer(_card(plan, transport, lines, sides, tally.model), maps)


def over_sites(num_sites: int, work: Callable[[int], Result]) -> Iterator[Result]:
    """Yields what `work` returns for each site, in order.

    Several sites are at work at once, a core and one thread each: so the bits do not depend on the number of cores.
    """
    with (
        machine.threads(1),
        ThreadPoolExecutor(machine.num_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield from pool.map(work, range(num_sites))


def read_transport(plan: Plan) -> Transport:
    """Returns what kind of map a plan wants."""
    written = plan.spec["transport"]
    chosen = written["select"]
    return Transport(
        method=written["method"],
        support=_support(written["support"]),
        threshold=written.get("threshold", Transport.threshold),
        select=None if chosen is None else Selection(chosen["by"], chosen["top"], chosen["of"], chosen["across"]),
    )


def _support(written: Support | Sequence[float]) -> Support:
    if isinstance(written, str):
        return written
    low, high = written
    return float(low), float(high)


def unpaired(transport: Transport, source: Marginal, target: Marginal) -> Transport:
    """Returns a transport; that of contrast pairs which lost a prompt has the same formula, and no pairs."""
    lost_one = transport.method == "actadd" and source.num_samples != target.num_samples
    return dataclasses.replace(transport, method="caa") if lost_one else transport


def _chosen(plan: Plan, laws: Laws, selection: Selection | None) -> list[torch.Tensor] | None:
    """Returns which neurons of each site are moved, after a pass over all laws; None moves all."""
    if selection is None:
        return None

    def score(number: int) -> torch.Tensor:
        return scores(selection.by, laws.marginal("source", number), laws.marginal("target", number))

    return select(selection, list(over_sites(len(plan.sites), score)))


def _samples(laws: Laws, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return laws.samples("source", number), laws.samples("target", number)


def _card(plan: Plan, transport: Transport, lines: Sequence[SiteCard], sides: Sequence[SideCard], model: str) -> Card:
    source, target = sides
    return Card(
        format_version=FORMAT_VERSION,
        name=plan.spec["name"],
        kind=plan.model.kind,
        method=transport.method,
        support=describe(transport.where),
        threshold=transport.threshold,
        select=str(transport.select or ""),
        law=_law(plan),
        pooling=plan.spec["pooling"],
        template=plan.spec["template"],
        estimation=plan.estimation,
        sites=tuple(lines),
        timesteps=plan.timesteps,
        source=source,
        target=target,
        model_fingerprint=model,
        checkpoint_fingerprint=plan.model.fingerprint,
        numerics=vars(plan.numerics),
        plan=plan.fingerprint,
        spec=plan.spec,
        tensors="",
    )


def _law(plan: Plan) -> str:
    source, target = (plan.law[name].kind for name in SIDES)
    return source if source == target else f"source {source}, target {target}"


def _side_card(plan: Plan, name: SideName, tally: SideTally) -> SideCard:
    side = plan.side(name)
    if tally.num_samples == 0:
        raise NothingLeftError(side.num_prompts, 0, [f"{name} row {one.row} ({one.reason})" for one in tally.lost[:3]])
    return SideCard(
        num_prompts=side.num_prompts,
        num_removed=side.num_removed,
        num_samples=tally.num_samples,
        num_quarantined=tally.num_lost,
        num_truncated=tally.num_truncated,
        fingerprint=side.fingerprint,
        quarantined=tuple(sorted(tally.lost, key=lambda one: one.row)),
        splits=tuple(sorted(tally.splits, key=lambda one: (one.unit, one.batch))),
    )
