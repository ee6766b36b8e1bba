import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sketch import Frame, Grid, SketchArrays, compiled, keys, tiles
from pipeline.sketch.errors import SketchShapeError
from tests.pipeline.sketch.agreement import any_bits, around_edges, different, frame_of
from tests.pipeline.sketch.columns import ALL_KINDS, columns, samples
from tests.pipeline.sketch.conformance import law, pilot

pytestmark = pytest.mark.skipif(not compiled.available(), reason="Numba is not installed")

GRIDS = [Grid(), Grid(1, 2), Grid(2, 4), Grid(6, 15), Grid(10, 13)]


@law
@given(
    batches=st.lists(samples(max_rows=300, kinds=ALL_KINDS), min_size=1, max_size=4),
    grid=st.sampled_from(GRIDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_every_kind_of_column_counts_as_in_torch(batches: list[torch.Tensor], grid: Grid, dtype: torch.dtype) -> None:
    converted = [batch.to(dtype) for batch in batches]

    assert not different(compiled.update, converted, pilot(batches[0]), grid)


@pytest.mark.parametrize("exponent", [-100, -1, 7, 114])
@pytest.mark.parametrize("grid", [Grid(), Grid(1, 2), Grid(7, 15)], ids=str)
def test_edges_and_what_lies_beside_them(exponent: int, grid: Grid) -> None:
    for centre in (0.0, 2.0**exponent, -1.7 * 2.0**exponent):
        edges = around_edges(grid, exponent, centre)

        assert not different(compiled.update, [edges], frame_of(centre, exponent, widening=2), grid)


@pytest.mark.parametrize(("exponent", "moments"), [(-100, -100), (-20, -24), (0, 0), (20, 16), (114, 114)])
def test_any_bits(exponent: int, moments: int) -> None:
    bits = any_bits(1 << 14, seed=exponent)
    for centre in (0.0, 1.5, -3e38):
        frame = frame_of(centre, exponent, moments=moments)

        assert not different(compiled.update, [bits, bits.bfloat16()], frame, Grid())


@pytest.mark.parametrize("rows", [1, 2, tiles.ROWS - 1, tiles.ROWS, tiles.ROWS + 1, 3 * tiles.ROWS + 5])
@pytest.mark.parametrize("neurons", [1, 2, 65, tiles.NEURONS, tiles.NEURONS + 65])
def test_odd_shapes_with_outliers(rows: int, neurons: int) -> None:
    rng = np.random.default_rng(rows * neurons)
    values = rng.normal(size=(2, rows, neurons)) * np.where(rng.random((2, rows, neurons)) < 1e-3, 1e5, 1)
    first, second = torch.from_numpy(values.astype(np.float32))

    assert not different(compiled.update, [first, second], Frame.from_pilot(first[:32]), Grid())


@pytest.mark.parametrize("binade", [21, 22, 23, 26, 27, 28, 31, 32, 43, 44, 45])
def test_moments_where_sums_run_out_of_room(binade: int) -> None:
    # As many rows as are swept at once and one more, all at the end of a binade or beside it.
    end = torch.tensor(2.0 ** (binade - 16))
    for value in (end, torch.nextafter(end, 0 * end), torch.nextafter(end, 2 * end)):
        for batch in (value.expand(tiles.ROWS + 1, 1), -value.expand(tiles.ROWS + 1, 1)):
            assert not different(compiled.update, [batch], frame_of(0.0, 0), Grid())


def test_values_may_lie_in_memory_in_any_way() -> None:
    values = columns(200, 5, ALL_KINDS)
    rows, neurons = values.shape
    frame = pilot(values)
    wide = torch.randn(rows, 3 * neurons)
    wide[:, neurons : 2 * neurons] = values
    layouts = {
        "a slice of a wider batch": wide[:, neurons : 2 * neurons],
        "every other row": values.repeat_interleave(2, dim=0)[::2],
        "neuron by neuron": values.t().contiguous().t(),
        "one row again and again": values[3].expand(rows, neurons),
        "needing a gradient": values.clone().requires_grad_(),
    }

    for name, layout in layouts.items():
        assert not different(compiled.update, [layout], frame, Grid()), name


def test_an_empty_batch_changes_nothing() -> None:
    assert not different(compiled.update, [torch.empty(0, 3), torch.ones(2, 3)], pilot(torch.randn(9, 3)), Grid())


def test_threads_may_share_the_neurons() -> None:
    values, grid = columns(2000, 6, ALL_KINDS).repeat(1, 8), Grid()
    frame = pilot(values)
    neurons = values.shape[1]
    state = SketchArrays.empty(neurons, grid)
    parts = [slice(start, min(start + 23, neurons)) for start in range(0, neurons, 23)]
    threads = [
        threading.Thread(target=compiled.update, args=(values[:, part], frame[part], grid, state.neurons(part)))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = SketchArrays.empty(neurons, grid)
    keys.update(values, frame, grid, alone)

    assert all(torch.equal(tensor, getattr(alone, name)) for name, tensor in state.tensors().items())


@pytest.mark.parametrize(
    ("values", "neurons", "grid"),
    [
        (torch.zeros(3, 4), 5, Grid()),
        (torch.zeros(4), 4, Grid()),
        (torch.zeros(3, 4, dtype=torch.int32), 4, Grid()),
        (torch.zeros(3, 4, device="meta"), 4, Grid()),
        (torch.zeros(3, 4), 4, Grid(4, 15)),
    ],
)
def test_what_does_not_fit_the_state_is_refused(values: torch.Tensor, neurons: int, grid: Grid) -> None:
    frame = Frame.from_pilot(torch.randn(8, neurons))
    with pytest.raises(SketchShapeError, match="wanted"):
        compiled.update(values, frame, grid, SketchArrays.empty(neurons, Grid()))


def test_a_state_with_gaps_is_refused() -> None:
    state = SketchArrays.empty(8, Grid()).neurons(slice(0, 8, 2))
    with pytest.raises(SketchShapeError, match="contiguous"):
        compiled.update(torch.zeros(3, 4), Frame.from_pilot(torch.randn(8, 4)), Grid(), state)
