"""Small runs for faults, and what has to hold of a run whatever happened to it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from pipeline import artifact
from pipeline.folds import Folds, contents_of
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.storage import storage_at
from schemas.fold import UnitSet
from schemas.plan import LAWS
from tests.command import Done
from tests.faults.injection.armed import Fault
from tests.faults.trials import Settings, Trials

#: Short enough that no two of them are the same to the model.
SOURCES = [f"{n} trains{'!' * n}" for n in range(5)]
TARGETS = [f"{7 * n} songs{'?' * n}" for n in range(3)]


@final
@dataclass(frozen=True)
class Case:
    """A spec, and what an undisturbed run of it gives.

    Args:
        spec: The spec.
        run: The undisturbed run.
    """

    spec: Path
    run: Path


def write_spec(folder: Path, model: Path, **changes: Any) -> Path:
    """Writes a spec of three and two units of two prompts, without workers; `changes` extend its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("source.txt", SOURCES), ("target.txt", TARGETS)):
        (folder / name).write_text("\n".join(changes.pop(name, prompts)) + "\n")
    spec: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": {"kind": "causal-lm", "path": str(model)},
        "source": {"path": "source.txt"},
        "target": {"path": "target.txt"},
        "hookpoints": ["model.layers.1.input_layernorm", "model.norm"],
        "compute": {"workers": 0, "max_tokens": 16, "unit_size": 2, "batch_tokens": 32},
        "failures": {"lease": 60.0},
    }
    for name, change in changes.items():
        spec[name] = spec[name] | change if isinstance(change, dict) and name in spec else change
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def make_case(trials: Trials, folder: Path, model: Path, **changes: Any) -> Case:
    """Writes a spec, and runs it undisturbed."""
    spec = write_spec(folder, model, **changes)
    done = trials.fit(spec, folder / "run")
    assert done.code == 0, done.err
    return Case(spec, folder / "run")


#: The plan and the model are those of the case.
WARM = Settings(warm=True)


def hurt(trials: Trials, case: Case, run: Path, *faults: Fault, code: int, settings: Settings = WARM) -> Done:
    """Runs a case with faults, which end it with a code, and checks that nothing half done is visible."""
    done = trials.fit(case.spec, run, *faults, settings=settings)
    assert done.code == code, done
    check_sound(run)
    return done


def go_on(trials: Trials, case: Case, run: Path, settings: Settings = WARM) -> None:
    """Runs the same command again, to the same bits; what was done is not done again, and nothing is left over."""
    before, finished = receipts(run), steer(run)
    done = trials.fit(case.spec, run, settings=settings)
    assert done.code == 0, done
    check_complete(run, case.run)
    assert before.items() <= receipts(run).items()
    # A run that is finished is only looked at, by whoever has no lease to sweep under.
    assert finished or leftovers(run) == []


def within(run: Path, part: str = "") -> str:
    """An expression for the paths of a run in which a part, an expression itself, is found."""
    return f"^{run}/.*{part}" if part else f"^{run}/"


def steer(run: Path) -> dict[str, bytes]:
    """The files of the steer that counts, by name."""
    key = artifact.current(storage_at(run))
    return {} if key is None else {path.name: path.read_bytes() for path in (run / key).iterdir()}


def tensors(run: Path) -> str:
    """The hash of the steer's tensors; the card also says how long things took."""
    found = artifact.find(storage_at(run))
    assert found is not None
    return found.card.tensors


def receipts(run: Path) -> dict[str, bytes]:
    """The receipts, by their place in the run."""
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.glob("receipts/*/*.json"))}


def check_sound(run: Path) -> None:
    """Checks that nothing half done is visible in a run, finished or not: what is said to be there is there, whole."""
    storage = storage_at(run)
    if not (run / "plan.json").exists():
        return
    plan = read_plan(storage)
    ledger, folds = Ledger(storage, plan), Folds(storage, plan)
    merged: dict[str, UnitSet] = {}
    for law in LAWS:
        found = folds.covering(law, range(len(plan.sites)))
        if found is not None:
            assert contents_of(ledger, law, found[0]) == found[0]
            merged[law] = found[0]
            for fold in found[1]:
                ledger.check(fold.output)
    for receipt in ledger.receipts():
        for output in receipt.outputs:
            if storage.exists(output.path) or receipt.unit not in merged.get(output.kind, UnitSet()):
                ledger.check(output)
    artifact.find(storage, plan)


def check_complete(run: Path, like: Path) -> None:
    """Checks that a run is finished: the steer's bits are those of another run, and each prompt counts once."""
    check_sound(run)
    assert tensors(run) == tensors(like)
    assert counted(run) == counted(like)


def counted(run: Path) -> Counter[tuple[str, int]]:
    """How often each prompt counts: once each, but for those that are quarantined."""
    plan = read_plan(storage_at(run))
    counts: Counter[tuple[str, int]] = Counter()
    for receipt in Ledger(storage_at(run), plan).receipts():
        unit = receipt.of(plan.unit_size)
        counts.update((unit.side, unit.start + row) for row in receipt.rows.nonzero()[0].tolist())
    return counts


def leftovers(run: Path) -> list[str]:
    """Temporary files; those of the lease are left, for another process may just be asking for it."""
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.name.endswith(".partial"))
    return [name for name in found if not name.startswith("lease/")]
