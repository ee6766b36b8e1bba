"""What one stepper has at a site, and the fit of a site on what all of them have."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import final

import torch

from act.errors import EmptyMarginalError
from act.marginal import Marginal
from act.site_fit import SiteLaws, fit_site
from act.transport import AbstractMap
from pipeline.errors import NothingLeftError
from pipeline.fit import read_transport, unpaired
from pipeline.laws import Laws
from pipeline.sketch import HistogramSketch
from schemas.plan import Plan


@final
@dataclass(frozen=True, eq=False)
class Part:
    """What a stepper's units have at a site: values where the side is small, else integers, which merge in any order.

    Args:
        samples: In the order of the units, `[samples, neurons]`, where the source's law is exact; else None.
        sketch: The same, counted, where it is a sketch; else None.
        tokens: The sketch of their single tokens; None where they are not asked for.
    """

    samples: torch.Tensor | None
    sketch: HistogramSketch | None
    tokens: HistogramSketch | None


def fit_parts(plan: Plan, laws: Laws, site: int, parts: Sequence[Part]) -> AbstractMap:
    """Returns the map of a site: the one that `pipeline.fit` makes of the same laws once they are stored.

    Args:
        plan: The plan.
        laws: Has the target's law.
        site: The site.
        parts: Of all steppers, in the order of their units.
    """
    samples = [part.samples for part in parts if part.samples is not None]
    joined = torch.cat(samples) if samples else None
    sketch, tokens = merged([part.sketch for part in parts]), merged([part.tokens for part in parts])
    with _left(plan.source.num_prompts):
        source = sketch.marginal() if sketch is not None else Marginal.from_samples(_present(joined))
    with _left(plan.target.num_prompts):
        target = laws.marginal("target", site)
    pair = None
    if plan.spec["transport"]["method"] == "iti-probe":
        pair = _present(joined), laws.samples("target", site)
    single = tokens.marginal() if tokens is not None and tokens.num_samples else None
    transport = unpaired(read_transport(plan), source, target)
    return fit_site(plan.sites[site], transport, SiteLaws(source, target, single, pair))[0]


@contextmanager
def _left(num_prompts: int) -> Iterator[None]:
    """A context in which a side without samples is told as one whose prompts are all quarantined."""
    try:
        yield
    except EmptyMarginalError as exc:
        raise NothingLeftError(num_prompts, 0, ("actmap status says which and why",)) from exc


def merged(sketches: Sequence[HistogramSketch | None]) -> HistogramSketch | None:
    """Returns the sketch of all samples, or None if there are no sketches; these are left as they are."""
    there = [one for one in sketches if one is not None]
    return reduce(HistogramSketch.merge, there) if there else None


def _present(samples: torch.Tensor | None) -> torch.Tensor:
    assert samples is not None, "an exact law is made of samples"
    return samples
