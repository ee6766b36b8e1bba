"""The monotone coupling of two laws: on the line, the optimal one for every convex cost."""

from dataclasses import dataclass
from typing import final

import torch

from act.marginal import UNIT_ROUNDOFF, Marginal
from act.transport.refinement import gaps


@final
@dataclass(frozen=True, eq=False)
class Coupling:
    """The correlation of each neuron under the monotone coupling, from 0 to 1. Built by `couple`.

    Args:
        correlation: The correlation, or the estimate of it, `[neurons]`, float64.
        lowest: What that of the samples is at least, `[neurons]`, float64.
        highest: What that of the samples is at most, `[neurons]`, float64.
    """

    correlation: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor


def couple(source: Marginal, target: Marginal) -> Coupling:
    """Returns the correlation ``ρ = ∫ z_a(u) z_b(u) du = 1 - ½ ∫ (z_a(u) - z_b(u))² du`` of each neuron.

    ``z = (Q - m) / s`` are the standardised quantile functions. For samples these are steps and ρ is exact, for
    unequal counts too. For cells the estimate takes them as lines inside each cell, standardised by the lines' own
    moments: what the lines leave out of a variance, and values that lie on the ends of cells, cancel in the ratio.
    A law with itself gives 1 exactly. If either law is constant, ρ has no meaning and is 0, bounds too.

    The bounds hold for any samples with these cells and moments. Let `ẑ` be standardised by the stated moments, `m̂`
    and `ŝ`. On a piece of [0, 1] where `ẑ_a` is in one cell and `ẑ_b` in one, ``|ẑ_a - ẑ_b|`` is between the distance
    of the two cells and that of their far ends, so that ``D = ½ ∫ (ẑ_a - ẑ_b)²`` is between `D_near` and `D_far`. With
    ``r = s / ŝ`` and ``δ = (m - m̂) / ŝ``, `ẑ` has the mean δ and the mean square ``r² + δ²``, hence

        ``D = ½ (r_a - r_b)² + r_a r_b (1 - ρ) + ½ (δ_a - δ_b)²``,

    and, as `r` is between ``r⁻`` and ``r⁺`` and ``|δ|`` at most ``δ⁺``, which `deviation_bounds` and `mean_error` say,

        ``1 - ρ ≤ D_far / (r_a⁻ r_b⁻)``,
        ``1 - ρ ≥ (D_near - ½ max |r_a - r_b|² - ½ (δ_a⁺ + δ_b⁺)²) / (r_a⁺ r_b⁺)``.

    ρ is never negative (Hoeffding, 1940). Rounding is added: a sum of `k` squares of differences is off by `k` units
    of roundoff of itself, and by some more of ``∫ z² = 1``, which the differences come from; the variance of `n`
    samples is off by `n` units of itself and by ``δ²``.

    Args:
        source: Law of `a`.
        target: Law of `b`, of as many neurons.

    Raises:
        CountsError: The numbers of samples have too large a common multiple.
    """
    found = gaps(source, target)
    (least_a, most_a), (least_b, most_b) = _ratios(source), _ratios(target)
    num_terms = found.num_pieces + 128 + sum(law.num_samples for law in (source, target) if law.is_exact)
    far, near = found.farthest / 2, found.nearest / 2
    shifted = (_mean_error(source) + _mean_error(target)).square() / 2
    slack = num_terms * UNIT_ROUNDOFF * (1 + far) + shifted
    apart = (most_a - least_b).maximum(most_b - least_a).square() / 2
    lowest = 1 - (far + slack) / (least_a * least_b)
    highest = 1 - (near - slack - apart).clamp(min=0) / (most_a * most_b)
    spread = (source.deviation > 0) & (target.deviation > 0)
    lowest, highest = (bound.clamp(0, 1).where(spread, 0.0) for bound in (lowest, highest))
    correlation = (1 - found.between / 2).maximum(lowest).minimum(highest)
    return Coupling(correlation, lowest, highest)


def wasserstein2(source: Marginal, target: Marginal, coupling: Coupling | None = None) -> torch.Tensor:
    """Returns the 2-Wasserstein distance of each neuron's two laws, `[neurons]`, float64.

    ``W₂² = (m_a - m_b)² + (s_a - s_b)² + 2 s_a s_b (1 - ρ)``, in the unit of the activation.

    Args:
        source: The one law.
        target: The other, of as many neurons.
        coupling: What `couple` returns for them, if it is known already.

    Raises:
        CountsError: The numbers of samples have too large a common multiple.
    """
    known = couple(source, target) if coupling is None else coupling
    a, b = source.deviation, target.deviation
    moved = (source.mean - target.mean).square() + (a - b).square()
    return (moved + 2 * a * b * (1 - known.correlation)).sqrt()


def _ratios(law: Marginal) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what ``s / ŝ`` is at least and at most, 1 for a law without spread."""
    deviation = law.deviation.where(law.deviation > 0, 1.0)
    least, most = (bound.where(law.deviation > 0, 1.0) / deviation for bound in law.deviation_bounds)
    return least, most


def _mean_error(law: Marginal) -> torch.Tensor:
    """Returns the bound on ``|m - m̂| / ŝ``, with the rounding of `m̂`."""
    return (law.mean_error + UNIT_ROUNDOFF * law.mean.abs()) / law.deviation.where(law.deviation > 0, 1.0)
