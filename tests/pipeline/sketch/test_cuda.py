"""Triton's kernels against plain torch: in Triton's interpreter, by a second pytest, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.sketch import Frame, Grid, cuda
from tests.pipeline.sketch.agreement import any_bits, around_edges, different, frame_of
from tests.pipeline.sketch.columns import ALL_KINDS, columns
from tests.pipeline.sketch.conformance import pilot

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else ["cuda"] if torch.cuda.is_available() else []

runs = pytest.mark.skipif(not DEVICES, reason="runs in Triton's interpreter or on a GPU")

# The interpreter computes in NumPy, which warns of infinities that a GPU is silent about.
pytestmark = pytest.mark.filterwarnings(r"ignore::RuntimeWarning:triton\.runtime\.interpreter")


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.mark.skipif(INTERPRETED, reason="this is the second pytest")
def test_the_rest_of_this_file_passes_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-rN"]
    ran = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


@runs
@pytest.mark.parametrize("grid", [Grid(), Grid(1, 2), Grid(10, 13)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_kind_of_column_counts_as_in_torch(device: str, grid: Grid, dtype: torch.dtype) -> None:
    values = columns(50, 1, ALL_KINDS)
    batches = [part.to(dtype) for part in values.split([1, 19, 30])]

    assert not different(cuda.update, batches, pilot(values), grid, device)


@runs
def test_programs_share_neurons_and_the_last_ones_are_not_full(device: str, monkeypatch) -> None:
    values = columns(75, 2, ALL_KINDS).repeat(1, 4)[:, :65]
    frame = pilot(values)
    for chunk, rows, neurons in ((16, 8, 8), (32, 32, 16), (64, 1, 32)):
        for name, size in {"CHUNK": chunk, "ROWS": rows, "NEURONS": neurons}.items():
            monkeypatch.setattr(cuda, name, size)

        assert not different(cuda.update, [values], frame, Grid(), device)


@runs
@pytest.mark.parametrize("exponent", [-100, 0, 114])
def test_edges_and_what_lies_beside_them(device: str, exponent: int) -> None:
    grid = Grid(3, 15)
    for centre in (0.0, 1.7 * 2.0**exponent):
        values = around_edges(grid, exponent, centre)
        # As a row of many neurons with one frame: the interpreter is slow in programs, not in what each holds.
        frame = frame_of(centre, exponent)
        frame = Frame(*(tensor.expand(len(values)).clone() for tensor in frame.to_tensors().values()))

        assert not different(cuda.update, [values.t()], frame, grid, device)


@runs
@pytest.mark.parametrize(("exponent", "moments"), [(-100, -100), (0, -6), (0, 0), (114, 114)])
def test_any_bits(device: str, exponent: int, moments: int) -> None:
    values = any_bits(40, seed=exponent, neurons=64)
    frame = frame_of(1.5 * 2.0**exponent, exponent, moments=moments)
    frame = Frame(*(tensor.expand(64).clone() for tensor in frame.to_tensors().values()))

    assert not different(cuda.update, [values, values.bfloat16()], frame, Grid(), device)


@runs
def test_moments_of_any_size(device: str) -> None:
    ends = torch.tensor([2.0 ** (binade - 16) for binade in range(46)])
    values = torch.stack([ends, torch.nextafter(ends, 0 * ends), torch.nextafter(ends, 2 * ends), ends * 1.5])
    rounded = torch.arange(184).view(4, 46) * 2.0**-17
    frame = Frame(torch.zeros(46), *(torch.full((46,), exponent, dtype=torch.int32) for exponent in (0, 4, 0)))

    assert not different(cuda.update, [values, -values, rounded, -rounded], frame, Grid(), device)


@runs
def test_values_may_lie_in_memory_in_any_way(device: str) -> None:
    values = columns(20, 5, ALL_KINDS)
    rows, neurons = values.shape
    wide = torch.randn(rows, 3 * neurons)
    wide[:, neurons : 2 * neurons] = values
    layouts = [wide[:, neurons : 2 * neurons], values.t().contiguous().t(), values[3].expand(rows, neurons)]
    layouts += [values.clone().requires_grad_(), torch.empty(0, neurons)]

    assert not different(cuda.update, layouts, pilot(values), Grid(), device)


@runs
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_it_is_available_on_a_gpu() -> None:
    assert cuda.available(torch.device("cuda"))


def test_it_is_not_available_on_a_cpu() -> None:
    assert not cuda.available(torch.device("cpu"))
