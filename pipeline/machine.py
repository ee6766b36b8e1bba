"""What this machine has, and the class of bits that it computes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from pipeline.errors import DeviceError
from schemas.plan import Numerics

#: Packages whose version may change an activation.
_PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "numpy")

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def pick_device(wanted: str) -> str:
    """Returns the device that ``auto`` means here, or the one that was asked for.

    Raises:
        DeviceError: This machine lacks it, or there is none of that name.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", wanted)
    if match is None or (wanted != "cpu" and int(match[1] or 0) >= torch.cuda.device_count()):
        raise DeviceError(wanted)
    return wanted


def numerics(device: str, dtype: str, threads: int, attention: str) -> Numerics:
    """Returns the class of bits of a worker on this machine."""
    return Numerics(
        device="cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        dtype=dtype,
        threads=threads,
        attention=attention,
        cpu=torch.backends.cpu.get_cpu_capability(),
        versions={name: version for name in _PACKAGES if (version := _version(name))},
    )


def memory_per_worker(device: str, workers: int) -> int:
    """Returns the bytes that one of several workers may take: of the GPU, or its part of the host's memory."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for path in _CGROUP_LIMITS if (limit := _limit(Path(path))) is not None]
    return min([physical, *limits]) // max(workers, 1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A context with a number of intra-op threads; what the process had before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def peak_memory() -> int:
    """Returns the highest resident memory of this process so far, in bytes."""
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
