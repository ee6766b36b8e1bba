"""Small real runs for tests: a spec on a tiny model and prompts that are made here."""

from pathlib import Path
from typing import Any

import yaml

from jobs.fit import fit
from jobs.start import Fitted

SOURCES = [f"The train to platform {n} is late again, says clerk number {n * 7 % 11}." for n in range(40)]
TARGETS = [f"♪ A song for {n} voices, played {'very ' * (n % 5)}softly." for n in range(28)]


def write_spec(folder: Path, model: dict[str, Any], **changes: Any) -> Path:
    """Writes prompts and a spec into a folder; `changes` replace or extend its sections; returns the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.txt").write_text("\n".join(SOURCES) + "\n")
    (folder / "target.txt").write_text("\n".join(TARGETS) + "\n")
    spec: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": model,
        "source": {"path": "source.txt"},
        "target": {"path": "target.txt"},
        "hookpoints": "layernorms",
        "compute": {"workers": 0, "max_tokens": 32, "unit_size": 8, "batch_tokens": 128},
    }
    for name, change in changes.items():
        spec[name] = spec[name] | change if isinstance(change, dict) and name in spec else change
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def run(folder: Path, model: dict[str, Any], **changes: Any) -> Fitted:
    """Fits a spec in a folder and returns what came of it; the run is in ``folder/run``."""
    return fit(write_spec(folder, model, **changes), folder / "run", folder / "cache")
