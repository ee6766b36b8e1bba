"""One neuron's sketch by the definition, in exact arithmetic: slow, and independent of the code under test."""

import math
from bisect import bisect_left
from collections import Counter
from fractions import Fraction

import numpy as np

from pipeline.sketch import Frame

#: Centre, exponent, widest and moment exponent of one neuron.
Parts = tuple[float, int, int, int]


def parts(frame: Frame, neuron: int = 0) -> Parts:
    """The frame of one neuron."""
    exponent, widest, moments = (int(e[neuron]) for e in (frame.exponent, frame.widest, frame.moment_exponent))
    return float(frame.centre[neuron]), exponent, widest, moments


def edges(precision: int, octaves: int) -> list[Fraction]:
    """The edges of one side: `2^precision` equal cells on [0, 1] and in each octave after it."""
    steps = 1 << precision
    inner = [Fraction(k, steps) for k in range(steps)]
    outer = [Fraction(1 << octave) * (1 + Fraction(k, steps)) for octave in range(octaves - 1) for k in range(steps)]
    return [*inner, *outer, Fraction(1 << (octaves - 1))]


def differences(values: np.ndarray, centre: float) -> list[float]:
    """`fl(x − c)` in float32 of the finite values."""
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        return [float(x) for x in finite.astype(np.float32) - np.float32(centre)]


def exponent(values: np.ndarray, frame: Parts, octaves: int) -> int:
    """The smallest exponent from the frame's on whose bounded cells reach all values, or the widest."""
    centre, smallest, widest, _ = frame
    far = max((abs(d) for d in differences(values, centre)), default=0.0)
    if math.isinf(far):
        return widest
    for candidate in range(smallest, widest):
        if Fraction(far) <= Fraction(2) ** (candidate + octaves - 1):
            return candidate
    return widest


def counts(values: np.ndarray, frame: Parts, precision: int, octaves: int) -> dict[int, int]:
    """How many values each cell holds, by searching the edges; the atom is cell H + 1."""
    centre, *_ = frame
    table, scale = edges(precision, octaves), Fraction(2) ** exponent(values, frame, octaves)
    half = octaves << precision
    found: Counter[int] = Counter()
    for d in differences(values, centre):
        key = half + 1 if math.isinf(d) else bisect_left(table, abs(Fraction(d)) / scale)
        found[half + 1 + (key if d > 0 else -key)] += 1
    return dict(found)


def moments(values: np.ndarray, frame: Parts) -> tuple[int, int, int]:
    """The sums of a and a², and how many values are too far for them."""
    centre, _, _, moment_exponent = frame
    first = second = far = 0
    quantum = Fraction(2) ** (moment_exponent - 16)
    for d in differences(values, centre):
        # Python rounds half to even. In float32 nothing changes: beyond 2^24 quanta all values are integers.
        steps = None if math.isinf(d) else round(Fraction(d) / quantum)
        if steps is None or abs(steps) >= 1 << 44:
            far += 1
        else:
            first, second = first + steps, second + steps * steps
    return first, second, far
