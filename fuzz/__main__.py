"""Fuzzes one target, guided by the branches that inputs reach: ``python -m fuzz TARGET --seconds N``.

It needs atheris, which nothing else here does: ``make fuzz`` installs it. What makes a target fail is written to
``fuzz/found/``, and goes back in as ``python -m fuzz TARGET --again FILE``.
"""

import argparse
import importlib
import sys
from pathlib import Path

from fuzz import TARGETS

FOUND = Path(__file__).parent / "found"
CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Runs a target until its time is over, or once on a file; ends with a failure's trace and a status above 0."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=120, help="how long; 120 if not given")
    parser.add_argument("--seed", type=int, default=1, help="of what is random; 1 if not given")
    parser.add_argument("--again", type=Path, help="a file in fuzz/found/, run once")
    chosen = parser.parse_args()
    if chosen.again is not None:
        importlib.import_module(f"fuzz.{chosen.target}").check(chosen.again.read_bytes())
        return
    fuzz(chosen.target, chosen.seconds, chosen.seed)


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Fuzzes a target from its seeds on; libFuzzer prints executions, coverage and speed, and ends the process."""
    atheris = importlib.import_module("atheris")  # not there unless `make fuzz` installed it
    with atheris.instrument_imports(include=["schemas", "act", "pipeline", "yaml"]):
        target = importlib.import_module(f"fuzz.{name}")
    corpus = CORPUS / name
    for folder in (FOUND, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-max_len=65536",
        "-len_control=20",
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={FOUND}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
