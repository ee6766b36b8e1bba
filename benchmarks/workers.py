"""Claim: two workers on two cores are at least as fast as one process that uses both threads."""

import os
import time
from dataclasses import dataclass
from typing import final

import psutil

from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate
from benchmarks.runs import Setting, stages_of

UNIT_SIZE = 32
NUM_PROMPTS = {Effort.USUAL: 256, Effort.LONG: 512}
PAIRS = {Effort.USUAL: 3, Effort.LONG: 5}

_SHARED = (
    "one process with two threads collapses when another process takes one of its cores: read no pair where one did"
)


@final
@dataclass(frozen=True)
class Fit:
    """What one ``actmap fit`` took, in seconds.

    Args:
        extract: Its extract stage.
        start: Starting workers and loading models before it.
        command: The whole command.
        others: Cores that other processes kept busy meanwhile, Ray's own among them.
    """

    extract: float
    start: float
    command: float
    others: float

    def told(self, num_prompts: int) -> str:
        """Returns it in words, for a fit of so many prompts a side."""
        rate, extract, start = 2 * num_prompts / self.extract, self.extract, self.start
        told = f"{rate:.1f} prompts/s, {extract:.1f} s after a start of {start:.1f} s, {self.command:.1f} s in all"
        return f"{told}, {self.others:.1f} cores busy with other processes"


def measure(effort: Effort) -> list[Finding]:
    """Fits the same prompts both ways, as commands, in alternation."""
    count = NUM_PROMPTS[effort]
    pairs = list(
        alternate(
            PAIRS[effort],
            lambda _: fit(Setting(count, UNIT_SIZE, workers=2, threads=1)),
            lambda _: fit(Setting(count, UNIT_SIZE, workers=0, threads=2)),
        )
    )
    title = "two workers on Ray / one process with two threads, prompts a second"
    notes = [_SHARED, *(f"two workers: {two.told(count)}; one process: {one.told(count)}" for two, one in pairs)]
    return [
        Finding(
            f"{title}, extract stage",
            "x",
            Spread.of([one.extract / two.extract for two, one in pairs]),
            Wanted("at least", 1.0),
            (f"{PAIRS[effort]} pairs of fits on 2 x {count} prompts in units of {UNIT_SIZE}", *notes),
        ),
        Finding(
            f"{title}, start-up included",
            "x",
            Spread.of([(one.extract + one.start) / (two.extract + two.start) for two, one in pairs]),
            None,
            ("start-up is Ray and two models against one model: it weighs less the longer the job",),
        ),
    ]


def fit(setting: Setting) -> Fit:
    """Runs one fit as a command of its own and returns what it took."""
    begin, busy = time.perf_counter(), _others_busy()
    stages = stages_of(setting)
    seconds, others = time.perf_counter() - begin, _others_busy() - busy
    return Fit(stages["extract"], stages["workers"], seconds, max(0.0, others / seconds))


def _others_busy() -> float:
    """CPU seconds of the machine since it started, less those of this process's own finished commands."""
    machine, own = psutil.cpu_times(), os.times()
    return machine.user + machine.system - own.children_user - own.children_system
