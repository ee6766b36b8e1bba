"""The fit of one site: two laws become a map, and the line of the card that says what it does."""

from dataclasses import dataclass
from typing import final

import torch

from act.marginal import Marginal
from act.tokens import TokenLaw
from act.transport import AbstractMap, Samples, Support, Transport, fit, scores, select
from act.transport.affine import LARGEST
from schemas.card import SiteCard
from schemas.plan import Site


@final
@dataclass(frozen=True, eq=False)
class SiteLaws:
    """What is known of a site.

    Args:
        source: Law of its source.
        target: Law of its target.
        tokens: Law of single source tokens; None where the source's samples are single tokens, or none were kept.
        samples: What the laws are made of, `[samples, neurons]` each; None where nobody asks for it.
        misfit: Neurons whose sketch had a frame that did not fit.
    """

    source: Marginal
    target: Marginal
    tokens: TokenLaw | None
    samples: Samples | None = None
    misfit: int = 0

    @classmethod
    def of(cls, samples: Samples, tokens: TokenLaw | None) -> "SiteLaws":
        """Returns the laws of samples."""
        return cls(Marginal.from_samples(samples[0]), Marginal.from_samples(samples[1]), tokens, samples)


def fit_site(
    site: Site, transport: Transport, laws: SiteLaws, chosen: torch.Tensor | None = None
) -> tuple[AbstractMap, SiteCard]:
    """Returns the map of a site and its line of the card.

    Args:
        site: The site.
        transport: What kind of map to fit.
        laws: What is known of the site.
        chosen: Which neurons are moved, `[neurons]`, bool; None moves those that a selection within the site chooses,
            or all.
    """
    if chosen is None and transport.select is not None:
        chosen = select(transport.select, [scores(transport.select.by, laws.source, laws.target)])[0]
    fitted = fit(
        transport.method,
        laws.source,
        laws.target,
        support=transport.where,
        tokens=laws.tokens,
        threshold=transport.threshold,
        samples=laws.samples,
    )
    fitted = fitted if chosen is None else fitted.restricted_to(chosen)
    return fitted, site_card(site, fitted, laws.source, laws.tokens, laws.misfit)


def site_card(
    site: Site, transport: AbstractMap, source: Marginal, tokens: TokenLaw | None, misfit: int = 0
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
