from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.sketch.errors import GridError
from tests.pipeline.sketch import reference
from tests.pipeline.sketch.conformance import law, seeds

grids = st.builds(Grid, st.integers(1, 6), st.integers(2, 15))


def counts_at(exponent: int, values: np.ndarray, grid: Grid) -> torch.Tensor:
    """The counts of each value alone, `[values, cells]`, at one scale."""
    scale = torch.full((len(values),), exponent, dtype=torch.int32)
    sketch = HistogramSketch.empty(Frame(torch.zeros(len(values)), scale, scale, scale), grid)
    sketch.update(torch.from_numpy(values)[None])
    return sketch.arrays.counts


def beside(values: np.ndarray) -> np.ndarray:
    """Values and the three floats on either side of each, of both signs."""
    near = values.astype(np.float32).view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)
    near = near[near >= 0].view(np.float32)
    return np.concatenate([near, -near])


@given(grid=grids)
def test_edges_are_those_of_a_float_with_gradual_underflow(grid: Grid) -> None:
    assert [Fraction(edge) for edge in grid.edges().tolist()] == reference.edges(grid.precision, grid.octaves)
    assert len(grid.edges()) == grid.half + 1
    assert grid.num_cells == 2 * grid.half + 3


@given(grid=grids)
def test_cells_lie_side_by_side_around_the_atom(grid: Grid) -> None:
    lows, highs = grid.cell_ends()

    assert len(lows) == len(highs) == grid.num_cells
    assert lows[0] == -torch.inf
    assert highs[-1] == torch.inf
    assert torch.equal(lows[1:], highs[:-1])
    assert lows[grid.atom] == highs[grid.atom] == 0
    assert torch.equal(lows[grid.atom + 1 :], grid.edges())


@law
@given(grid=grids, exponent=st.integers(-99, 110), seed=seeds)
def test_coarsening_counts_is_counting_at_twice_the_scale(grid: Grid, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.choice(grid.edges().numpy(), 40) * 2.0 ** (exponent + 1)
    spread = 2.0 ** (exponent + rng.uniform(-8, grid.octaves, 100))
    values = beside(np.concatenate([edges, spread, rng.uniform(0, 2.0**-140, 4)]))
    # What lies in the open ends is not coarsened: there the scale has reached its cap.
    values = values[np.abs(values) <= np.float32(2.0 ** (exponent + grid.reach))]
    fine, coarse = (counts_at(at, values, grid) for at in (exponent, exponent + 1))

    assert torch.equal(grid.coarsen(fine), coarse)


@given(grid=grids, seed=seeds)
def test_coarsening_loses_and_moves_nothing_that_it_should_not(grid: Grid, seed: int) -> None:
    counts = torch.randint(0, 9, (3, grid.num_cells), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    counts[:, -1 - (1 << grid.precision) : -1] = counts[:, 1 : 1 + (1 << grid.precision)]
    before = counts.clone()
    coarse = grid.coarsen(counts)

    assert torch.equal(counts, before)
    assert torch.equal(coarse.sum(1), counts.sum(1))
    assert torch.equal(coarse.flip(1), grid.coarsen(counts.flip(1)))
    for kept in (0, grid.atom, grid.num_cells - 1):
        assert torch.equal(coarse[:, kept], counts[:, kept])


@pytest.mark.parametrize("wrong", [(0, 15), (11, 5), (5, 1), (9, 15), (5, 0)])
def test_a_grid_beyond_float32_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(GridError, match="wanted a precision from 1 to 10"):
        Grid(*wrong)
