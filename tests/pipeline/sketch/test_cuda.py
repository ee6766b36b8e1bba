"""Triton's kernels against plain torch: in Triton's interpreter, by a second pytest, and on a GPU if there is one."""

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


def several(neurons: int, frame: Frame) -> Frame:
    """The frame of so many neurons that are all like one."""
    return Frame(*(tensor.expand(neurons).clone() for tensor in frame.to_tensors().values()))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch) -> None:
    # The interpreter goes through all rows that a program may have, with or without values.
    if INTERPRETED:
        monkeypatch.setattr(cuda, "CHUNK", 32)


@pytest.mark.slow
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
@pytest.mark.parametrize(
    ("dtype", "grid"),
    [
        (torch.float32, Grid()),
        (torch.float32, Grid(1, 2)),
        (torch.bfloat16, Grid(10, 13)),
        (torch.float16, Grid()),
        (torch.float64, Grid()),
    ],
)
def test_every_kind_of_column_counts_as_in_torch(device: str, dtype: torch.dtype, grid: Grid) -> None:
    values = columns(50, 1, ALL_KINDS)
    batches = [part.to(dtype) for part in values.split([1, 19, 30])]

    assert not different(cuda.update, batches, pilot(values), grid, device)


@runs
def test_programs_share_neurons_and_the_last_ones_are_not_full(device: str, monkeypatch) -> None:
    values = columns(75, 2, ALL_KINDS).repeat(1, 4)[:, :65]
    frame = pilot(values)
    for chunk, rows, neurons in ((16, 8, 32), (64, 32, 16)):
        for name, size in {"CHUNK": chunk, "ROWS": rows, "NEURONS": neurons}.items():
            monkeypatch.setattr(cuda, name, size)

        assert not different(cuda.update, [values], frame, Grid(), device)


@runs
@pytest.mark.parametrize("exponent", [-100, 0, 114])
def test_edges_and_what_lies_beside_them(device: str, exponent: int) -> None:
    grid = Grid(3, 15)
    for centre in (0.0, 1.7 * 2.0**exponent):
        values = around_edges(grid, exponent, centre).view(-1, 77)

        assert not different(cuda.update, [values], several(77, frame_of(centre, exponent)), grid, device)


@runs
@pytest.mark.parametrize(("exponent", "moments"), [(-100, -100), (0, -6), (0, 0), (114, 114)])
def test_any_bits(device: str, exponent: int, moments: int) -> None:
    values = any_bits(40, seed=exponent, neurons=64)
    frame = several(64, frame_of(1.5 * 2.0**exponent, exponent, moments=moments))

    assert not different(cuda.update, [values, values.bfloat16()], frame, Grid(), device)


@runs
def test_moments_of_any_size(device: str) -> None:
    ends = torch.tensor([2.0 ** (binade - 16) for binade in range(46)])
    values = torch.stack([ends, torch.nextafter(ends, 0 * ends), torch.nextafter(ends, 2 * ends), ends * 1.5])
    rounded = torch.arange(184).view(4, 46) * 2.0**-17

    assert not different(
        cuda.update, [values, -values, rounded, -rounded], several(46, frame_of(0.0, 0)), Grid(), device
    )


@runs
def test_values_may_lie_in_memory_in_any_way(device: str) -> None:
    values = columns(20, 5, ALL_KINDS)
    rows, neurons = values.shape
    wide = torch.randn(rows, 3 * neurons)
    wide[:, neurons : 2 * neurons] = values
    layouts = [wide[:, neurons : 2 * neurons], values.t().contiguous().t(), values[3].expand(rows, neurons)]
    layouts += [values.clone().requires_grad_(), torch.empty(0, neurons)]

    assert not different(cuda.update, layouts, pilot(values), Grid(), device)


@pytest.mark.skipif(INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["extremes", "count"])
def test_a_kernel_compiles_for_a_gpu_that_is_not_there(name: str, capability: int, tmp_path, monkeypatch) -> None:
    from triton import compile as compiled_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeline.sketch import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, name)
    constants: dict[str, float] = {"CHUNK": 32, "ROWS": 16, "NEURONS": 64, "PADDING": 0}
    constants |= cuda.rule(Grid()) if name == "count" else {}
    floats, sums = {"centre", "scale", "quanta"}, {"nans", "plus_infs", "minus_infs", "first", "upper", "lower", "far"}
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(sums, "*i64")
    types |= dict.fromkeys(("row_stride", "neuron_stride", "rows", "neurons"), "i64")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = compiled_for(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})

    assert compiled.asm["cubin"]
    assert "fma" not in compiled.asm["ptx"]


@runs
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_it_is_available_on_a_gpu() -> None:
    assert cuda.available(torch.device("cuda"))


def test_it_is_not_available_on_a_cpu() -> None:
    assert not cuda.available(torch.device("cpu"))
