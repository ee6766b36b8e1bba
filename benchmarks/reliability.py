"""Claims: what reliability costs: durable writes, a finished run resumed, plans and drivers of a million prompts."""

import dataclasses
import json
import pkgutil
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, final
from unittest import mock

from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.runs import Setting, scratch, short_prompts, tiny_model
from jobs.cache import default_cache
from jobs.fit import fit as fit_run
from jobs.fit import plan as plan_run
from jobs.hands import Hands
from jobs.stages import Stages
from jobs.start import Begun, Start
from pipeline import artifact
from pipeline.ledger import Ledger
from pipeline.plan import make_plan, settle
from pipeline.sequential.drive import AbstractSteppers
from pipeline.storage import storage_at
from pipeline.workers import AbstractWorkers
from schemas.job import read_job
from schemas.plan import LawName, Plan, Unit
from schemas.receipt import Output, Receipt, packed_tokens

MILLION = 1_000_000
REPEATS = 3

#: Prompts of a run whose durable writes are timed; units of the usual size, so that a unit is as long as it usually is.
DURABLE = {Effort.USUAL: 256, Effort.LONG: 2_048}

_WIDTH = 8


def measure(effort: Effort) -> list[Finding]:
    """Measures all of them."""
    with scratch() as folder:
        data = short_prompts(folder / "million.parquet", MILLION)
        model = tiny_model(folder / "model")
        return [
            *_durability(folder, DURABLE[effort]),
            _planning(folder, data),
            *_drivers(folder, data, model),
        ]


def _durability(folder: Path, num_prompts: int) -> list[Finding]:
    """Runs SmolLM2 in this process, and counts what fsync takes, and what all calls of the storage take."""
    shares, stored = [], []
    for repeat in range(REPEATS):
        place = folder / f"durable{repeat}"
        place.mkdir()
        spec = Setting(num_prompts, min(512, num_prompts)).write(place)
        with _counted("os.fsync") as syncs, _counted("pipeline.storage.local.LocalStorage.create") as creates:
            begin = time.perf_counter()
            fit_run(spec, place / "run", default_cache())
            wall = time.perf_counter() - begin
        shares.append(100 * sum(syncs) / wall)
        stored.append(100 * sum(creates) / wall)
    return [
        Finding(
            f"durability: fsync in a run of 2 x {num_prompts} prompts on SmolLM2, of its wall time",
            "%",
            Spread.of(shares),
            Wanted("under", 3.0),
            (f"creating files whole, syncs included, took {Spread.of(stored).median:.2f} %",),
        )
    ]


class _counted:
    """A context that gives a list of the seconds that each call of a function takes."""

    def __init__(self, name: str) -> None:
        self._seconds: list[float] = []
        self._patch = mock.patch(name, self._timed(pkgutil.resolve_name(name)))

    def __enter__(self) -> list[float]:
        self._patch.start()
        return self._seconds

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _timed(self, function):  # noqa: ANN001, ANN202 - whatever it is
        def timed(*arguments, **options):  # noqa: ANN002, ANN003, ANN202
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._seconds.append(time.perf_counter() - begin)

        return timed


def _planning(folder: Path, data: Path) -> Finding:
    spec = _merged(Setting(MILLION // 2, 512, data=data), folder)
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        plan_run(spec, default_cache())
        seconds.append(time.perf_counter() - begin)
    return Finding(
        "planning a million prompts on SmolLM2: read, drawn, hashed; model surveyed",
        "s",
        Spread.of(seconds),
        Wanted("under", 60.0),
    )


def _drivers(folder: Path, data: Path, model: Path) -> list[Finding]:
    """Drives runs of two sizes, each in a process of its own, with workers that do nothing; the larger is resumed."""
    facts = {}
    for size in (10_000, MILLION):
        command = [sys.executable, "-m", "benchmarks.reliability", str(folder), str(data), str(model), str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        facts[size] = json.loads(done.stdout.splitlines()[-1])
    small, large = facts[10_000], facts[MILLION]
    return [
        Finding(
            "driver over simulated units of 64 prompts, receipts checked and counted",
            "units/s",
            Spread.of([large["units"] / large["seconds"]]),
            Wanted("at least", 2_000.0),
            (f"{large['units']:,} units",),
        ),
        Finding(
            "peak memory of the driver, a million prompts against ten thousand",
            "x",
            Spread.of([large["peak"] / small["peak"]]),
            Wanted("under", 1.1),
            (f"{small['peak'] / 1e6:.0f} MB and {large['peak'] / 1e6:.0f} MB, with all that it imports",),
        ),
        Finding(
            "resume of a finished run of a million prompts, the whole command",
            "s",
            Spread.of(large["resumes"]),
            Wanted("under", 5.0),
        ),
    ]


@final
class SimulatedWorkers(AbstractWorkers):
    """Workers whose units take no time and leave nothing but the receipt that they return."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self._plan

    def __enter__(self) -> Self:
        """Starts nobody."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends nobody."""

    def turn(self, plan: Plan, uri: str) -> None:
        """Has no model."""
        self._plan = plan

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses none."""

    def extract(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Yields a receipt of each unit at once."""
        return (simulated(self._plan, unit) for unit in units)

    def steppers(self) -> AbstractContextManager[AbstractSteppers]:
        """Nobody steps."""
        raise NotImplementedError

    def fold(self, receipt: Receipt) -> None:
        """Folds nothing."""

    def reduce(self) -> None:
        """Writes nothing."""


def simulated(plan: Plan, unit: Unit) -> Receipt:
    """Returns a receipt as a worker would have sent it."""
    outputs = tuple(
        Output(kind, f"{kind}/{unit.side}/{unit.index}", 4_096, 0, f"{unit.index:064x}")
        for kind in ("activations", "source")
    )
    return Receipt(
        plan=plan.fingerprint,
        model="m" * 64,
        side=unit.side,
        unit=unit.index,
        attempt=1,
        origin="",
        num_prompts=unit.num_prompts,
        tokens=packed_tokens([_WIDTH] * unit.num_prompts),
        num_truncated=0,
        quarantined=(),
        splits=(),
        outputs=outputs,
        seconds=1.0,
        compute_seconds=1.0,
        worker=1,
        peak_memory=1,
    )


def _drive(folder: Path, data: Path, model: Path, size: int) -> dict[str, object]:
    """Plans, lays out and drives a run of so many prompts; the larger one is then finished by hand and resumed."""
    place = folder / f"run{size}"
    place.mkdir()
    spec = _merged(Setting(size // 2, 64, model=model, data=data), place)
    storage = storage_at(place / "run")
    job = read_job(spec)
    plan, checkpoint = make_plan(job, place, default_cache())
    settle(plan, storage)
    start = Start(
        Begun(storage, plan, job.located(place), spec.read_bytes(), checkpoint), mock.Mock(), Hands(), Stages(_silent)
    )
    start._hands._workers = SimulatedWorkers(plan)
    begin = time.perf_counter()
    start._extract(mock.Mock(prompts=0))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resumes = _resumes(place, data, model, size) if size == MILLION else []
    return {
        "units": plan.num_units("source") + plan.num_units("target"),
        "seconds": seconds,
        "peak": peak,
        "resumes": resumes,
    }


def _resumes(folder: Path, data: Path, model: Path, size: int) -> list[float]:
    """Finishes a run of usual units with simulated receipts, and times the command that finds it finished."""
    place = folder / "finished"
    place.mkdir()
    tiny = Setting(128, 64, model=model, data=data).write(place)
    steer = fit_run(tiny, place / "tiny", default_cache()).steer
    spec = _merged(Setting(size // 2, 512, model=model, data=data), place)
    storage, plan = storage_at(place / "run"), plan_run(spec, default_cache())
    settle(plan, storage)
    ledger = Ledger(storage, plan)
    with mock.patch("os.fsync"):  # nobody relies on these files
        for unit in plan.units():
            ledger.commit(unit, simulated(plan, unit))
        card = dataclasses.replace(steer.card, plan=plan.fingerprint)
        artifact.publish(storage, dataclasses.replace(steer, card=card))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "jobs.cli", "fit", str(spec), "--run", str(place / "run")]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _merged(setting: Setting, folder: Path) -> Path:
    """Writes a spec that keeps what laws need and no more; returns its path."""
    spec = setting.write(folder)
    spec.write_text(f"{spec.read_text()}store: {{activations: none, sketches: merged}}\n")
    return spec


def _silent(event: object) -> None:
    """Listens to nothing."""


if __name__ == "__main__":
    where, prompts, weights, count = sys.argv[1:]
    sys.stdout.write(json.dumps(_drive(Path(where), Path(prompts), Path(weights), int(count))) + "\n")
