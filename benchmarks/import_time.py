"""Claim: the loader imports little more than torch."""

import subprocess
import sys

from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate

PAIRS = {Effort.USUAL: 9, Effort.LONG: 31}


def measure(effort: Effort) -> list[Finding]:
    """Imports both in fresh processes, in alternation."""
    _seconds("act")  # Reads the files into the page cache and writes the bytecode.
    pairs = list(alternate(PAIRS[effort], lambda _: _seconds("act"), lambda _: _seconds("torch")))
    ratio = Spread.of([ours / theirs for ours, theirs in pairs])
    ours, theirs = Spread.of([one for one, _ in pairs]), Spread.of([two for _, two in pairs])
    notes = tuple(
        f"import {name}: {spread.median:.2f} s ({spread.low:.2f} to {spread.high:.2f})"
        for name, spread in (("act", ours), ("torch", theirs))
    )
    return [Finding("import act / import torch, wall time", "x", ratio, Wanted("under", 1.5), notes)]


def _seconds(package: str) -> float:
    """Imports a package in a fresh interpreter, whose own start does not count."""
    timed = f"import time; begin = time.perf_counter(); import {package}; print(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
    return float(done.stdout)
