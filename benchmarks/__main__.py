"""Measures the claims and prints one table. Writes nothing, unless ``--json FILE`` asks for the findings as JSON."""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import (
    capture,
    driver,
    import_time,
    map_fit,
    memory,
    real_laws,
    reliability,
    sequential,
    sketch_cost,
    sketch_error,
    sketch_speed,
    workers,
)
from benchmarks.finding import Effort, Finding, Spread

#: Capture comes before those that start Ray here: it counts the CPU time of all of this process's threads.
CLAIMS: Mapping[str, Callable[[Effort], list[Finding]]] = {
    "import": import_time.measure,
    "sketch-speed": sketch_speed.measure,
    "sketch-cost": sketch_cost.measure,
    "sketch-error": sketch_error.measure,
    "map-fit": map_fit.measure,
    "workers": workers.measure,
    "capture": capture.measure,
    "sequential": sequential.measure,
    "driver": driver.measure,
    "memory": memory.measure,
    "real-laws": real_laws.measure,
    "reliability": reliability.measure,
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("claims", nargs="*", choices=[[], *CLAIMS], help="which claims; all when none is named")
    parser.add_argument("--long", action="store_const", const=Effort.LONG, default=Effort.USUAL, dest="effort")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")
    chosen = parser.parse_args()
    console, machine = Console(), describe_machine()
    console.print(machine, highlight=False)
    findings: list[Finding] = []
    for name in chosen.claims or CLAIMS:
        begin = time.perf_counter()
        found = CLAIMS[name](chosen.effort)
        seconds = time.perf_counter() - begin
        told = ", ".join(f"{one.measured.median:.3f} {one.unit}" for one in found)
        console.print(f"{name}: {told} (took {seconds:.0f} s)", style="dim", highlight=False)
        findings += found
    show(console, findings)
    if chosen.json:
        facts = {"machine": machine, "findings": [dataclasses.asdict(one) for one in findings]}
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n")


def describe_machine() -> str:
    """Returns the machine in words: its cores, how busy it is, and the versions that matter."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    versions = [f"{package} {metadata.version(package)}" for package in ("torch", "transformers", "ray", "zarr")]
    busy = f"{os.cpu_count()} cores of {name}, load {os.getloadavg()[0]:.1f} at the start"
    return f"{busy}; {', '.join([f'Python {platform.python_version()}', *versions])}"


def show(console: Console, findings: Sequence[Finding]) -> None:
    """Prints the table, and under it what else was seen."""
    table = Table("claim", "measured", "of (lowest to highest)", "wanted", "")
    for finding in findings:
        wanted = f"{finding.wanted.sense} {finding.wanted.value:g} {finding.unit}" if finding.wanted else ""
        middle, ends = _words(finding.measured, finding.unit)
        table.add_row(finding.claim, middle, ends, wanted, finding.verdict)
    console.print(table)
    for finding in findings:
        console.print(finding.claim, highlight=False, style="bold")
        for note in finding.notes:
            console.print(f"  {note}", highlight=False, soft_wrap=True)


def _words(spread: Spread, unit: str) -> tuple[str, str]:
    return f"{spread.median:.3f} {unit}", f"{spread.low:.3f} to {spread.high:.3f}"


if __name__ == "__main__":
    main()
