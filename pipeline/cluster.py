"""Workers on Ray. The one module that imports Ray.

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
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from pipeline.errors import ClusterError, WorkerLostError
from pipeline.reduce import Reducer, num_reducers, shares
from pipeline.workers import AbstractWorkers
from schemas.plan import LawName, Plan, Unit
from schemas.receipt import Receipt

if TYPE_CHECKING:
    from types import ModuleType

#: Units that wait or run at each worker, so that none waits for the driver.
WINDOW = 2

#: Times a unit may lose its worker before the run stops.
ATTEMPTS = 3


@final
class RayWorkers(AbstractWorkers):
    """Actors on a local Ray, or on a running cluster.

    No activation passes through Ray: an actor writes its own unit and returns the receipt. An actor that dies is
    replaced, and its units run again.

    Args:
        plan: The plan.
        root: The run folder. Every worker must reach it, and the model, under the same path.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        compute = plan.spec["compute"]
        self._plan, self._root = plan, root.resolve()
        self._address, self._num_workers = compute["address"], compute["workers"]
        self._threads, self._gpus = compute["threads"], 0 if plan.numerics.device == "cpu" else 1
        self._stack = contextlib.ExitStack()
        self._ray: ModuleType | None = None
        self._actors: list[Any] = []
        self._reducers = _Reducers(plan, self._root)

    @property
    def plan(self) -> Plan:
        """The plan whose units they run."""
        return self._plan

    def __enter__(self) -> Self:
        """Starts or joins Ray and the actors, and waits until their models are loaded.

        Raises:
            ClusterError: Ray cannot be started or joined, or lacks the cores or GPUs for these workers.
            WorkerLostError: A worker died while it loaded the model.
        """
        with self._stack:
            self._ray = self._stack.enter_context(_ray(self._address, self._num_workers * self._threads))
            self._check_room()
            self._actors = [self._start() for _ in range(self._num_workers)]
            self._stack.callback(self._kill)
            self._stack.enter_context(self._reducers.running(self._ray))
            self._await_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Kills the actors and leaves Ray; a local Ray ends."""
        self._stack.close()

    def extract(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Keeps `WINDOW` units at every worker and waits for whichever finishes first."""
        ray = self._ray
        assert ray is not None, "units run inside the context"
        waiting, attempts = deque(units), dict.fromkeys(units, 0)
        running: dict[Any, tuple[int, Unit]] = {}
        while waiting or running:
            self._fill(waiting, running)
            done, _ = ray.wait(list(running), num_returns=1)
            place, unit = running.pop(done[0])
            try:
                yield ray.get(done[0])
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as exc:
                attempts[unit] += 1
                if attempts[unit] >= ATTEMPTS:
                    raise WorkerLostError(str(unit), attempts[unit], type(exc).__name__) from exc
                waiting.appendleft(unit)
                waiting.extendleft(self._replace(place, running))
            except ray.exceptions.RayTaskError as exc:
                raise _own(exc) from exc

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames, at as many workers as there are.

        Raises:
            WorkerLostError: A worker died over it.
        """
        actors = self._actors
        self._get([actors[place % len(actors)].settle_frame.remote(law) for place, law in enumerate(laws)], "a frame")

    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to every reducer and goes on."""
        self._reducers.fold(receipt)

    def reduce(self, receipts: Sequence[Receipt]) -> None:
        """Waits for the reducers; one that died is replaced, and folds its hookpoints anew."""
        self._reducers.reduce(receipts)

    def _fill(self, waiting: deque[Unit], running: dict[Any, tuple[int, Unit]]) -> None:
        for _ in range(WINDOW):
            for place, actor in enumerate(self._actors):
                if waiting and sum(at == place for at, _ in running.values()) < WINDOW:
                    unit = waiting.popleft()
                    running[actor.extract.remote(unit)] = place, unit

    def _replace(self, place: int, running: dict[Any, tuple[int, Unit]]) -> list[Unit]:
        """Starts a new actor for a dead one; returns the other units that died with it, which were not at fault."""
        lost = [ref for ref, (at, _) in running.items() if at == place]
        units = [running.pop(ref)[1] for ref in lost]
        assert self._ray is not None
        self._ray.kill(self._actors[place])  # it may only be out of reach, and would keep its cores
        self._actors[place] = self._start()
        return units

    def _start(self) -> Any:  # noqa: ANN401
        from pipeline.extract import Extractor  # with the actor's other imports

        assert self._ray is not None
        actor = self._ray.remote(Extractor)
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(self._threads)}
        return actor.options(
            num_cpus=self._threads,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
        ).remote(self._plan, self._root)

    def _await_ready(self) -> None:
        self._get([actor.ready.remote() for actor in self._actors], "loading the model")

    def _get(self, refs: list[Any], what: str) -> None:
        ray = self._ray
        assert ray is not None, "workers work inside the context"
        try:
            ray.get(refs)
        except ray.exceptions.RayTaskError as exc:
            raise _own(exc) from exc
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as exc:
            raise WorkerLostError(what, 1, type(exc).__name__) from exc

    def _check_room(self) -> None:
        """Actors that find no room would wait for it for ever."""
        assert self._ray is not None
        there = self._ray.cluster_resources()
        for kind, each in (("CPU", self._threads), ("GPU", self._gpus)):
            wanted, found = each * self._num_workers, int(there.get(kind, 0))
            if wanted > found:
                raise ClusterError(
                    self._address, f"{self._num_workers} workers need {wanted} {kind}s and it has {found}; take fewer"
                )

    def _kill(self) -> None:
        assert self._ray is not None
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []


@final
class _Reducers:
    """The reducer actors of a run: each owns some hookpoints. They take no core of their own.

    Args:
        plan: The plan.
        root: The run folder.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan, self._root = plan, root
        self._shares = shares(plan.sites, num_reducers(plan)) if plan.law.kind == "sketch" else []
        self._ray: Any = None
        self._actors: list[Any] = []

    @contextlib.contextmanager
    def running(self, ray: Any) -> Iterator[None]:  # noqa: ANN401
        """A context in which the actors run."""
        self._ray = ray
        self._actors = [self._start(owned) for owned in self._shares]
        try:
            yield
        finally:
            for actor in self._actors:
                ray.kill(actor)
            self._actors = []

    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to every actor. What becomes of it shows in `reduce`, which folds what is missing."""
        for actor in self._actors:
            actor.fold.remote(receipt)

    def reduce(self, receipts: Sequence[Receipt]) -> None:
        """Waits until every actor has folded these units and written its laws.

        Raises:
            WorkerLostError: An actor died again and again.
        """
        ray = self._ray
        todo = {place: self._actors[place].finish.remote(list(receipts)) for place in range(len(self._actors))}
        for attempt in range(1, ATTEMPTS + 1):
            lost: dict[int, BaseException] = {}
            for place, ref in todo.items():
                try:
                    ray.get(ref)
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as exc:
                    lost[place] = exc
                except ray.exceptions.RayTaskError as exc:
                    raise _own(exc) from exc
            todo = {place: self._replace(place).finish.remote(list(receipts)) for place in lost}
            if not lost:
                return
            cause = next(iter(lost.values()))
            if attempt == ATTEMPTS:
                raise WorkerLostError("reducing the sketches", attempt, type(cause).__name__) from cause

    def _replace(self, place: int) -> Any:  # noqa: ANN401
        self._ray.kill(self._actors[place])
        self._actors[place] = self._start(self._shares[place])
        return self._actors[place]

    def _start(self, owned: Sequence[int]) -> Any:  # noqa: ANN401
        actor = self._ray.remote(Reducer)
        environment = {"OMP_NUM_THREADS": "1"}
        return actor.options(
            num_cpus=0, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": environment}
        ).remote(self._plan, self._root, owned)


def _own(error: Any) -> BaseException:  # noqa: ANN401
    """Returns our own error that a worker raised, or the foreign one as it came."""
    cause = getattr(error, "cause", None) or getattr(error, "__cause__", None)
    if isinstance(cause, BaseException):
        return cause
    return error if isinstance(error, BaseException) else RuntimeError(str(error))


@contextlib.contextmanager
def _ray(address: str, num_cpus: int) -> Iterator["ModuleType"]:
    """A context in which this process is connected to Ray: one of its own, or a running cluster."""
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
        "RAY_AUTH_TOKEN_PATH": str(_token_file()),
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
def _token_file() -> Path:
    """A file with a fresh token, removed when the process ends. One a process: Ray remembers the first that it read."""
    folder = Path(tempfile.mkdtemp(prefix="actmap-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path
