"""Neurons that a method could stumble over: each has a map of numbers, with an error that holds."""

import numpy as np
import pytest
import torch

from act import transport
from act.marginal import Marginal
from tests.laws import exact, sketched

GENERATOR = np.random.default_rng(0)


def normal(num_samples: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return GENERATOR.normal(mean, deviation, size=num_samples)


#: Source and target samples of one neuron.
CASES = {
    "constant source": (np.full(30, 0.1), normal(40)),
    "constant target": (normal(30), np.full(40, 0.1)),
    "both constant": (np.full(30, 0.1), np.full(7, -2.5)),
    "the same constant": (np.full(30, 0.1), np.full(7, 0.1)),
    "dead on both sides": (np.zeros(30), np.zeros(30)),
    "dead source": (np.zeros(30), normal(30, 2)),
    "dead target": (normal(30, 2), np.zeros(30)),
    "nearly dead": (np.r_[np.zeros(29), 1e-30], np.r_[np.zeros(29), 1.0]),
    "two values": (np.r_[np.zeros(20), np.ones(10)], np.r_[np.full(5, 3.0), np.full(25, 7.0)]),
    "two values and one": (np.r_[np.zeros(20), np.ones(10)], np.full(5, 3.0)),
    "a spread that is tiny beside the mean": (normal(500, 1e3, 1e-2), normal(400, 1e3, 2e-2)),
    "a spread of one float32 step": (np.r_[np.full(9, 1e3), np.nextafter(np.float32(1e3), np.float32(2e3))], normal(9)),
    "heavy tails": (GENERATOR.standard_t(1, size=1000), GENERATOR.standard_t(1, size=900)),
    "heavy tails to normal": (GENERATOR.standard_t(1, size=1000), normal(1000)),
    "normal to heavy tails": (normal(1000), GENERATOR.standard_t(1, size=1000)),
    "7 against 1000": (normal(7), normal(1000, 3, 2)),
    "1000 against 7": (normal(1000), normal(7, 3, 2)),
    **{f"{n} against {m}": (normal(n), normal(m, 1)) for n in (1, 2, 3, 4) for m in (1, 2, 3, 4, 100)},
    "100 against 1": (normal(100), normal(1)),
    "subnormal": (normal(30, 0, 1e-41), normal(30, 0, 1e-41)),
    "subnormal to normal": (normal(30, 0, 1e-43), normal(30)),
    "normal to subnormal": (normal(30), normal(30, 0, 1e-43)),
    "near the largest float32": (GENERATOR.uniform(-3e38, 3e38, 30), GENERATOR.uniform(-3e38, 3e38, 40)),
    "near the largest float32, one side": (GENERATOR.uniform(2e38, 3e38, 30), GENERATOR.uniform(1e38, 3e38, 40)),
    "to near the largest float32": (normal(30), GENERATOR.uniform(-3e38, 3e38, 40)),
    "from near the largest float32": (GENERATOR.uniform(-3e38, 3e38, 30), normal(40)),
    "from one end of float32 to the other": (np.full(4, 3e38), np.full(3, -3e38)),
}
LAWS = {"samples": (exact, exact), "cells": (sketched, sketched), "both": (exact, sketched), "other": (sketched, exact)}
METHODS = ("mean", "gaussian", "linear")

EACH_CASE = pytest.mark.parametrize("case", CASES)
EACH_METHOD = pytest.mark.parametrize("method", METHODS)
EACH_LAW = pytest.mark.parametrize("laws", LAWS)


def fitted(method: str, case: str, laws: str) -> tuple[transport.AbstractMap, torch.Tensor, torch.Tensor]:
    """The map, and the samples as float32, `[samples, 1]`."""
    a, b = (samples.astype(np.float32)[:, None] for samples in CASES[case])
    source, target = (law(samples.astype(np.float64)) for law, samples in zip(LAWS[laws], (a, b), strict=True))
    return transport.fit(method, source, target), torch.from_numpy(a), torch.from_numpy(b)


@EACH_METHOD
@EACH_LAW
@EACH_CASE
def test_the_map_is_made_of_numbers_and_so_is_what_it_gives(method: str, case: str, laws: str) -> None:
    moved, a, _ = fitted(method, case, laws)

    assert all(part.isfinite().all() for part in moved.tensors().values())
    assert moved(a).isfinite().all()
    assert (moved.transported(Marginal.from_samples(a)) == 1).all()


@EACH_METHOD
@EACH_LAW
@EACH_CASE
def test_the_error_holds_against_the_map_of_the_samples(method: str, case: str, laws: str) -> None:
    moved, a, b = fitted(method, case, laws)
    true = transport.fit(method, Marginal.from_samples(a), Marginal.from_samples(b))

    assert ((moved(a).double() - true(a).double()).abs() <= moved.error.double()).all()


@EACH_METHOD
@EACH_LAW
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.startswith(("constant source", "both", "dead s", "1 a"))]
)
def test_a_source_without_spread_is_shifted_by_the_means(method: str, case: str, laws: str) -> None:
    moved, a, b = fitted(method, case, laws)

    assert moved.scale.item() == 1
    assert moved(a).double().mean().item() == pytest.approx(b.double().mean().item(), rel=1e-5, abs=1e-6)


@EACH_LAW
@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize(
    "case", ["constant target", "dead target", "two values and one", "100 against 1", "3 against 1"]
)
def test_a_target_without_spread_collapses_the_source(method: str, case: str, laws: str) -> None:
    moved, a, b = fitted(method, case, laws)

    assert moved.scale.item() == 0
    np.testing.assert_allclose(moved(a), np.broadcast_to(b[0], a.shape), rtol=1e-6)


@EACH_METHOD
@EACH_LAW
@pytest.mark.parametrize("case", ["the same constant", "dead on both sides"])
def test_a_neuron_that_is_one_constant_is_not_moved(method: str, case: str, laws: str) -> None:
    moved, a, _ = fitted(method, case, laws)

    assert torch.equal(moved(a), a)
    assert not moved.moves.any()


@EACH_LAW
def test_two_values_are_carried_to_two_values(laws: str) -> None:
    """A third of the source is 1 and five sixths of the target are 7: the mass between them decides the slope.

    A cell that holds the sevens has width, which is all that cells get wrong here.
    """
    moved, _, _ = fitted("linear", "two values", laws)
    # E[ab] = 7/3 under the monotone coupling; m_a = 1/3, m_b = 19/3, V_a = 2/9.
    scale = (7 / 3 - 19 / 9) / (2 / 9)

    assert moved.scale.item() == pytest.approx(scale, rel=1e-5 if laws == "samples" else 0.03)
    assert moved.shift.item() == pytest.approx(19 / 3 - moved.scale.item() / 3, rel=1e-5)


@EACH_LAW
@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_a_line_that_float32_cannot_hold_gives_way_to_the_shift_between_the_means(method: str, laws: str) -> None:
    for case in ("subnormal to normal", "near the largest float32, one side"):
        moved, a, b = fitted(method, case, laws)

        assert moved.scale.item() == 1
        assert moved.shift.item() == pytest.approx((b.double().mean() - a.double().mean()).item(), rel=1e-5)


@EACH_METHOD
@EACH_LAW
def test_a_shift_that_float32_cannot_hold_becomes_the_largest(method: str, laws: str) -> None:
    moved, _, _ = fitted(method, "from one end of float32 to the other", laws)

    assert (moved.scale.item(), moved.shift.item()) == (1, -torch.finfo(torch.float32).max)
    assert moved.error.item() == pytest.approx(6e38 - torch.finfo(torch.float32).max, rel=1e-5)
