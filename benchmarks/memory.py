"""Claim: the resident memory of each worker stays flat, however many prompts it sees."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import psutil

from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.runs import Setting, lay_out, scratch, short_prompts, tiny_model
from pipeline.cluster import RayWorkers
from pipeline.storage import LocalStorage
from schemas.plan import LAWS, Plan

EARLY = 1_000
UNIT_SIZE = 128
TINY_PROMPTS = 20_000
REAL_PROMPTS = {Effort.USUAL: 4_000, Effort.LONG: 20_000}

_EVERY = 0.02
_FLAT = 1.05


@final
@dataclass(frozen=True)
class Growth:
    """The highest resident memory of one worker, in bytes, over the first and over the last `EARLY` prompts."""

    early: int
    late: int


def measure(effort: Effort) -> list[Finding]:
    """Watches two Ray workers over many short prompts: on a tiny model, then on SmolLM2."""
    with scratch() as folder:
        model = tiny_model(folder / "model")
        tiny = _growth(folder / "tiny", TINY_PROMPTS, model)
        real = _growth(folder / "real", REAL_PROMPTS[effort], None)
    return [
        _finding(f"resident memory of a worker, {EARLY:,} to {TINY_PROMPTS:,} prompts, tiny model", tiny),
        _finding(f"resident memory of a worker, {EARLY:,} to {REAL_PROMPTS[effort]:,} prompts, SmolLM2", real),
    ]


def _growth(folder: Path, num_prompts: int, model: Path | None) -> list[Growth]:
    folder.mkdir()
    data = short_prompts(folder / "prompts.parquet", num_prompts)
    plan, run = lay_out(Setting(num_prompts // 2, UNIT_SIZE, workers=2, model=model, data=data), folder)
    return _watch(plan, run)


def _watch(plan: Plan, run: LocalStorage) -> list[Growth]:
    """Extracts the run; returns each worker's growth."""
    seen, landed = 0, [(0.0, 0)]
    with RayWorkers(plan, run.uri) as workers, _watching() as (pids, samples):
        workers.settle_frames(LAWS)
        for receipt in workers.extract(plan.units()):
            pids.add(receipt.worker)
            seen += receipt.num_prompts
            landed.append((time.monotonic(), seen))
    until = next(when for when, count in landed if count >= EARLY)
    since = next(when for when, count in landed if count >= seen - EARLY)
    return [
        Growth(max(rss for when, rss in one if when <= until), max(rss for when, rss in one if when >= since))
        for one in samples.values()
    ]


@contextmanager
def _watching() -> Iterator[tuple[set[int], dict[int, list[tuple[float, int]]]]]:
    """A context in which a thread samples the resident memory of processes: which ones, and when and how much."""
    pids: set[int] = set()
    samples: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    over = threading.Event()

    def sample() -> None:
        while not over.wait(_EVERY):
            for pid in list(pids):
                samples[pid].append((time.monotonic(), psutil.Process(pid).memory_info().rss))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield pids, samples
    finally:
        over.set()
        thread.join()


def _finding(claim: str, workers: list[Growth]) -> Finding:
    notes = tuple(
        f"worker {place}: at most {one.early / 1e6:.0f} MB over the first {EARLY:,} prompts of the run, "
        f"{one.late / 1e6:.0f} MB over the last"
        for place, one in enumerate(workers)
    )
    return Finding(claim, "x", Spread.of([one.late / one.early for one in workers]), Wanted("under", _FLAT), notes)
