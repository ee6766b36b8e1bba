from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sketch import Frame, Grid, SketchArrays, compiled, keys
from tests.pipeline.sketch import reference
from tests.pipeline.sketch.columns import ALL_KINDS, samples
from tests.pipeline.sketch.conformance import SMALL, law, pilot
from tests.pipeline.sketch.test_grid import beside
from tests.pipeline.sketch.test_histogram import TestHistogram as HistogramLaws


class TestHistogramInTorch(HistogramLaws):
    """The laws of a histogram, counted by plain torch."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def plain_torch(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "available", lambda: False)
            yield


def frame_at(centre: list[float], exponent: int, *, widest: int | None = None, moments: int | None = None) -> Frame:
    """A frame whose neurons have the same exponent and cannot widen, unless told."""
    ones = torch.ones(len(centre), dtype=torch.int32)
    widest = exponent if widest is None else widest
    moments = exponent if moments is None else moments
    return Frame(torch.tensor(centre), ones * exponent, ones * widest, ones * moments)


def counted(values: torch.Tensor, frame: Frame, grid: Grid | None = None) -> SketchArrays:
    arrays = SketchArrays.empty(frame.num_neurons, grid or Grid())
    keys.update(values, frame, grid or Grid(), arrays)
    return arrays


@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    centre=st.floats(width=32, allow_nan=False, allow_infinity=False),
    exponent=st.integers(-100, 114),
    grid=st.builds(Grid, st.integers(1, 8), st.integers(2, 15)),
)
def test_a_key_is_the_cell_that_holds_the_distance(value: float, centre: float, exponent: int, grid: Grid) -> None:
    cells = counted(torch.tensor([[value]]), frame_at([centre + 0.0], exponent), grid).counts[0].nonzero().tolist()
    column, frame = np.array([value], np.float32), (centre, exponent, exponent, 0)

    assert cells == [[cell] for cell in reference.counts(column, frame, grid.precision, grid.octaves)]


@pytest.mark.parametrize("exponent", [-100, -3, 0, 20, 80, 112])
@pytest.mark.parametrize("grid", [Grid(), SMALL])
def test_an_edge_belongs_to_the_inner_cell_and_its_neighbours_to_theirs(exponent: int, grid: Grid) -> None:
    values = beside(grid.edges().numpy() * 2.0**exponent)
    own = (0.0, exponent, exponent, 0)
    counts = counted(torch.from_numpy(values)[:, None], frame_at([0.0], exponent), grid).counts[0]

    assert {cell: n for cell, n in enumerate(counts.tolist()) if n} == reference.counts(
        values, own, grid.precision, grid.octaves
    )


@pytest.mark.parametrize("exponent", [-100, -3, 0, 20, 80, 114])
@pytest.mark.parametrize("side", [1, -1])
def test_a_distance_that_underflows_is_not_at_the_centre(exponent: int, side: int) -> None:
    values = side * torch.tensor([[2.0**-149], [2.0**-126], [2.0**-60], [0.0], [-0.0]])
    counts = counted(values, frame_at([0.0], exponent)).counts[0]

    assert counts[Grid().atom] == 2
    assert counts[Grid().atom :: side].sum() == 5 if side == 1 else counts[: Grid().atom].sum() == 3


@law
@given(values=samples(max_rows=50, kinds=ALL_KINDS), rows=st.integers(1, 50), width=st.integers(1, 25))
def test_tiles_leave_no_trace(values: torch.Tensor, rows: int, width: int) -> None:
    frame = pilot(values)
    whole = counted(values, frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "TILES", {"cpu": (rows, width)})
        tiled = counted(values, frame)

    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, getattr(tiled, name)), name


def test_values_are_not_written_to() -> None:
    values = torch.tensor([[1.0, torch.nan, -0.0], [torch.inf, 2.0, 3.0]])
    before = values.view(torch.int32).clone()
    counted(values, frame_at([0.0, 1.0, 2.0], 0))

    assert torch.equal(values.view(torch.int32), before)
