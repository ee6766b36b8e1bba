import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.transport import order
from tests.laws import exact, sketched

LEVELS = torch.tensor([0.0, 1e-9, 0.1, 1 / 3, 0.5, 0.77, 0.999, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("law", [exact, sketched])
@pytest.mark.parametrize("num", [1, 2, 7, 200])
def test_quantiles_are_those_of_the_law(law, num: int) -> None:
    made = law(np.random.default_rng(0).standard_t(3, size=(num, 5)))
    found = order.quantile(made, slice(1, 4), LEVELS.expand(3, -1))

    torch.testing.assert_close(found, made.quantile(LEVELS).t()[1:4], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", [exact, sketched])
def test_levels_may_differ_between_neurons(law) -> None:
    made = law(np.random.default_rng(0).normal(size=(50, 3)))
    levels = torch.rand(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    found = order.quantile(made, slice(None), levels)

    for neuron in range(3):
        torch.testing.assert_close(found[neuron], made.quantile(levels[neuron])[:, neuron], rtol=1e-9, atol=1e-9)


@given(st.integers(2, 400))
def test_the_level_of_a_rank_is_that_order_statistic_exactly(num: int) -> None:
    # Products such as k / (n - 1) * (n - 1) round to just above or below k.
    samples = np.arange(float(num))[:, None] ** 2
    law, ranks = exact(samples), torch.arange(num)[None]

    assert order.quantile(law, slice(None), order.level(law, ranks))[0].tolist() == samples[:, 0].tolist()


def test_counts_and_samples_before_are_those_of_the_cells() -> None:
    law = sketched(np.random.default_rng(0).normal(size=(100, 2)), 4)
    ends = order.ends_of(law, slice(1, 2))
    cells = torch.arange(ends.shape[1] + 1)[None]

    assert order.counts_of(law, slice(1, 2)).sum() == 100
    assert order.before(ends, cells)[0].tolist() == [0, *law.ends[1].tolist()]
    held = order.cell_of(ends, torch.arange(100)[None])[0]
    assert torch.bincount(held, minlength=ends.shape[1]).tolist() == order.counts_of(law, slice(1, 2))[0].tolist()
