"""The monotone coupling of two laws: on the line, the optimal one for every convex cost."""

from math import lcm

import numpy as np
import torch

from act.marginal import Marginal, blocks


def coupled_covariance(source: Marginal, target: Marginal) -> torch.Tensor:
    """Returns the covariance of each neuron under the monotone coupling, `[neurons]`, float64.

    It is ``∫ (Q_a(u) - m_a) (Q_b(u) - m_b) du`` over [0, 1]: the centred mean product of the quantile functions, which
    are steps, so it is exact for unequal counts. It is never negative. A law with itself gives its variance, to the
    bit. Work memory is a few times `act.marginal.WORK_SIZE` values, whatever the number of neurons.

    Args:
        source: Law of `a`.
        target: Law of `b`, of as many neurons.
    """
    steps = merged_steps(source.num_samples, target.num_samples)
    left, right, widths = (part.to(source.columns.device) for part in steps)
    covariance = torch.empty_like(source.mean)
    for neurons in blocks(source.num_neurons, len(widths)):
        product = _centred(source, neurons)[:, left] * _centred(target, neurons)[:, right]
        covariance[neurons] = (product * widths).sum(dim=1) / int(widths.sum())
    # Two ascending centred columns have no negative covariance; rounding may say otherwise.
    return covariance.clamp_(min=0)


def merged_steps(num_source: int, num_target: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the intervals of [0, 1] on which two step quantile functions are both constant.

    They lie between the points ``i / num_source`` and ``j / num_target`` together, ``n + m - gcd(n, m)`` intervals,
    found in whole numbers.

    Returns:
        The source sample, the target sample and the width of each interval, in order; the widths are whole multiples
        of ``1 / lcm(n, m)``.
    """
    unit = lcm(num_source, num_target)
    step_source, step_target = unit // num_source, unit // num_target
    edges = torch.from_numpy(np.union1d(np.arange(0, unit + 1, step_source), np.arange(0, unit, step_target)))
    starts = edges[:-1]
    return starts // step_source, starts // step_target, edges.diff()


def _centred(marginal: Marginal, neurons: slice) -> torch.Tensor:
    return marginal.columns[neurons].double() - marginal.mean[neurons, None]
