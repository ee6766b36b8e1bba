"""A long run whose processes are killed at random, again and again: is a prompt lost or doubled, are the bits the same?

``python -m benchmarks.soak --seconds 3600 --prompts 200000 --seed 1``. The driver, workers, reducers and the raylet are
killed or stopped; a driver that ended is started again, until the run is done; then another run begins, until the time
is up. Nothing is printed but what was seen. Exit code 0 if nothing was lost and nothing doubled.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import psutil
import yaml

from pipeline import artifact
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.storage import storage_at
from tests.models import tiny_llama

ROOT = Path(__file__).parents[1]

#: What is killed, by the name of its process, and how likely.
VICTIMS = {"driver": 3, "worker": 6, "reducer": 2, "stopped worker": 1, "raylet": 0.5}
NAMES = {"worker": "ray::Extractor", "stopped worker": "ray::Extractor", "reducer": "ray::Reducer", "raylet": "raylet"}

#: How often a driver is not waited for until it has workers, so that it is hurt while it starts, too.
WHILE_STARTING = 0.2


@final
@dataclass
class Seen:
    """What happened.

    Args:
        kills: Processes killed or stopped, by kind.
        ends: How drivers ended, by exit code.
        audits: What was found wrong, in words.
    """

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    audits: list[str] = field(default_factory=list)


def main() -> None:
    arguments = _parsed()
    rng, seen, begin = random.Random(arguments.seed), Seen(), time.monotonic()
    print(f"seed {arguments.seed}, {arguments.prompts} prompts, {arguments.workers} workers, {arguments.seconds:.0f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = _write(folder, arguments.prompts, arguments.workers, arguments.unit_size)
        wanted = _undisturbed(spec)
        print(f"undisturbed in {time.monotonic() - begin:.0f} s: {wanted[:16]}")
        end, rounds = time.monotonic() + arguments.seconds, 0
        while time.monotonic() < end:
            run = folder / f"run-{rounds}"
            _disturb(arguments, spec, run, rng, end, seen)
            seen.audits += _audit(run, wanted)
            rounds += 1
            took = f"{time.monotonic() - begin:.0f} s"
            print(
                f"run {rounds} done after {took}: kills {dict(seen.kills)}, drivers ended {dict(seen.ends)}", flush=True
            )
    print("\n".join(seen.audits) or f"{rounds} runs: prompts lost 0, doubled 0, the same bits")
    sys.exit(bool(seen.audits))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--prompts", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--workers", type=int, default=2, help="0 runs in the driver, which alone is then killed")
    parser.add_argument("--unit-size", type=int, default=64)
    parser.add_argument("--every", type=float, default=8.0, help="mean seconds between kills")
    return parser.parse_args()


def _write(folder: Path, prompts: int, workers: int, unit_size: int) -> Path:
    """Writes a model, prompts and a spec; two thirds of the prompts are the source's."""
    tiny_llama(folder / "model")
    source = prompts * 2 // 3
    for name, count in (("source", source), ("target", prompts - source)):
        (folder / f"{name}.txt").write_text("".join(f"{n * 7919 % 99991} {name}s\n" for n in range(count)))
    spec = {
        "version": 1,
        "name": "soak",
        "model": {"kind": "causal-lm", "path": "model"},
        "source": {"path": "source.txt"},
        "target": {"path": "target.txt"},
        "hookpoints": ["model.norm"],
        "law": "sketch",
        "store": {"activations": "sample", "sketches": "merged"},
        "compute": {"workers": workers, "max_tokens": 16, "unit_size": unit_size, "batch_tokens": 1024},
        # A worker whose unit is lost several times is unlucky here, and no prompt is to blame.
        "failures": {"attempts": 20, "deadline": 15.0, "lease": 5.0},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder / "spec.yaml"


def _start(spec: Path, run: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs.cli", "fit", str(spec), "--run", str(run)]
    own = {"ACTMAP_CACHE": str(spec.parent / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with _log(spec).open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log)


def _log(spec: Path) -> Path:
    """Where drivers write what they say."""
    return spec.parent / "log"


def _undisturbed(spec: Path) -> str:
    """Returns the hash of the steer of a run that nobody disturbs."""
    run = spec.parent / "undisturbed"
    code = _start(spec, run).wait()
    if code:
        raise SystemExit(f"the undisturbed run ended with {code}: {_log(spec).read_text()[-2000:]}")
    return _tensors(run) or ""


def _tensors(run: Path) -> str | None:
    steer = artifact.find(storage_at(run))
    return None if steer is None else steer.card.tensors


def _disturb(arguments: argparse.Namespace, spec: Path, run: Path, rng: random.Random, end: float, seen: Seen) -> None:
    """Runs a spec to its end, killing what belongs to it until the time is up; then it is left alone."""
    below: set[psutil.Process] = set()
    driver = _start(spec, run)
    while driver.returncode != 0:
        with suppress(psutil.Error):
            below |= set(psutil.Process(driver.pid).children(recursive=True))
        if time.monotonic() < end:
            if arguments.workers and rng.random() >= WHILE_STARTING:
                _wait_for_workers(driver, end)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(rng.expovariate(1 / arguments.every))
            _hurt(driver, rng, seen)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(2.0)
        if driver.returncode is not None:
            seen.ends[driver.returncode] += 1
            if driver.returncode not in {0, 1, 75, -signal.SIGKILL}:
                seen.audits.append(f"a driver ended with {driver.returncode}: {_log(spec).read_text()[-2000:]}")
                break
            driver = driver if driver.returncode == 0 else _start(spec, run)
    for process in below:
        with suppress(psutil.Error):
            process.kill()  # knows its own from another with the same number


def _wait_for_workers(driver: "subprocess.Popen[bytes]", end: float) -> None:
    """Waits until a driver has workers, has ended, or the time is up."""
    while driver.poll() is None and time.monotonic() < end and not _named(driver, "worker"):
        time.sleep(0.2)


def _hurt(driver: "subprocess.Popen[bytes]", rng: random.Random, seen: Seen) -> None:
    """Kills, or stops, a process of one of the kinds that there are."""
    if driver.poll() is not None:
        return
    found = {kind: _named(driver, kind) if kind in NAMES else [psutil.Process(driver.pid)] for kind in VICTIMS}
    kinds = [kind for kind in VICTIMS if found[kind]]
    kind = rng.choices(kinds, [VICTIMS[kind] for kind in kinds])[0]
    with suppress(psutil.Error):
        rng.choice(found[kind]).send_signal(signal.SIGSTOP if kind == "stopped worker" else signal.SIGKILL)
        seen.kills[kind] += 1


def _named(driver: "subprocess.Popen[bytes]", kind: str) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.Error):
                if kind in NAMES and (process.cmdline() or [""])[0].rpartition("/")[2].startswith(NAMES[kind]):
                    found.append(process)
    return found


def _audit(run: Path, wanted: str) -> list[str]:
    """Returns what is wrong with a finished run: each prompt has to count once, and the bits to be the wanted ones."""
    plan = read_plan(storage_at(run))
    counts: Counter[tuple[str, int]] = Counter()
    for receipt in Ledger(storage_at(run), plan).receipts():
        start = receipt.of(plan.unit_size).start
        counts.update((receipt.side, start + row) for row in receipt.rows.nonzero()[0].tolist())
    lost = plan.num_prompts - len(counts)
    doubled = sum(count > 1 for count in counts.values())
    wrong = [f"prompts lost {lost}"] * (lost > 0) + [f"prompts doubled {doubled}"] * (doubled > 0)
    steer = artifact.find(storage_at(run))
    if steer is None or steer.card.tensors != wanted:
        wrong.append(f"other bits: {None if steer is None else steer.card.tensors}")
    elif sum(side.num_samples for side in (steer.card.source, steer.card.target)) != plan.num_prompts:
        wrong.append("the steer rests on another number of samples")
    return wrong


if __name__ == "__main__":
    main()
