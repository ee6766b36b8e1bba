"""The running laws of a run, as a reducer tells them while units land."""

from dataclasses import dataclass
from typing import final

from schemas.plan import LawName

#: Which quantiles of a law are told.
PROBS = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
@dataclass(frozen=True)
class RunningSite:
    """The law of one site so far.

    Args:
        hookpoint: Name of the site.
        law: ``source``, ``target`` or ``tokens``.
        num_samples: Samples so far.
        quantiles: The quantiles `PROBS`, each the median over neurons.
        drift: How far a neuron's quantiles moved since the law was last told, in interquartile ranges: the largest over
            `PROBS`, then the median over neurons. None the first time.
    """

    hookpoint: str
    law: LawName
    num_samples: int
    quantiles: tuple[float, ...]
    drift: float | None


@final
@dataclass(frozen=True)
class Running:
    """What one reducer tells.

    Args:
        plan: Fingerprint of the plan.
        units: Units folded so far.
        sites: The running laws of the hookpoints that it owns.
    """

    plan: str
    units: int
    sites: tuple[RunningSite, ...]
