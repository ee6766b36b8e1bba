"""Connecting to Ray.

A local Ray listens on loopback alone and wants a token of its own. Ray reads both settings when it is first
imported, so they are in the environment before that.
"""

import atexit
import contextlib
import functools
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError

if TYPE_CHECKING:
    from types import ModuleType


@contextlib.contextmanager
def connected(address: str, num_cpus: int) -> Iterator["ModuleType"]:
    """A context in which this process is connected to Ray: one of its own, or a running cluster.

    Args:
        address: ``local`` for one of its own; anything else names a running cluster.
        num_cpus: Cores that a Ray of its own deals out.

    Raises:
        ClusterError: Ray cannot be started or joined.
    """
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        if address == "local":
            stack.enter_context(_private_environment())
            options |= {"num_cpus": num_cpus, "include_dashboard": False}
        import ray  # reads the environment when imported

        if address == "local" and ray._private.ray_constants.ENABLE_RAY_CLUSTER:  # it has no public name
            raise ClusterError(
                address, "ray was imported before actmap could bind it to loopback; import it afterwards"
            )
        if ray.is_initialized():
            raise ClusterError(address, "this process is already connected to a Ray; call ray.shutdown() first")
        try:
            with _sigterm_kept():
                ray.init(**options, log_to_driver=False, configure_logging=True, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as exc:
            raise ClusterError(address, str(exc).splitlines()[0]) from exc
        stack.callback(ray.shutdown)
        yield ray


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """A context after which SIGTERM does what it did before. Ray sets a handler that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _private_environment() -> Iterator[None]:
    """The environment of a Ray of our own: on loopback only, with a token that only we can read."""
    wanted = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@functools.cache
def token_file() -> Path:
    """A file with a fresh token, removed when the process ends. One a process: Ray remembers the first that it read."""
    folder = Path(tempfile.mkdtemp(prefix="actmap-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path
