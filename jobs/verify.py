"""Verifying a run or a steer: every byte, and what became of every prompt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from pipeline.errors import NothingToVerifyError, StorageError, VerificationError
from pipeline.plan import read_plan
from pipeline.storage import AbstractStorage, storage_at
from pipeline.verify import Damage, Seen, is_run, is_steer, verify_steer
from pipeline.verify import verify as verify_run
from schemas.plan import SIDES


@final
@dataclass(frozen=True)
class Verified:
    """What was found.

    Args:
        place: The run or the steer.
        what: Which of the two.
        seen: What was looked at, and what became of the prompts.
        units: Units of the run; 0 where that is not known, and for a steer.
        prompts: Places of prompts of the run, likewise.
        damages: What is damaged, in the order in which it was found.
        unknown: Files that are no part of it, which do no harm.
    """

    place: str
    what: Literal["run", "steer"]
    seen: Seen
    units: int
    prompts: int
    damages: tuple[Damage, ...]
    unknown: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What to do about damage."""
        if self.what == "steer":
            return "fetch it again, or fit it again"
        return f"actmap fit SPEC --run {self.place} --repair, with its spec, computes again what is needed"

    def check(self) -> None:
        """Checks that nothing is damaged.

        Raises:
            VerificationError: Something is; names the first of it.
        """
        if self.damages:
            first = self.damages[0]
            unit = "" if first.unit is None else str(first.unit)
            place = f"{self.place}/{first.key}"
            raise VerificationError(place, first.problem, unit, len(self.damages) - 1, self.remedy)


def verify(place: str | Path) -> Verified:
    """Returns what is wrong with a run, or with a steer by itself.

    Args:
        place: A folder, or the URL of a run.

    Raises:
        NothingToVerifyError: It holds neither.
    """
    storage, seen = storage_at(place), Seen()
    what: Literal["run", "steer"] = "run" if is_run(storage) else "steer"
    if what == "run":
        found = list(verify_run(storage, seen))
    elif "://" not in str(place) and is_steer(storage):
        found = list(verify_steer(Path(place), seen))
    else:
        raise NothingToVerifyError(str(place))
    units, prompts = _planned(storage)
    damages = tuple(damage for damage in found if damage.kind != "unknown")
    unknown = tuple(damage.key for damage in found if damage.kind == "unknown")
    return Verified(storage.uri, what, seen, units, prompts, damages, unknown)


def _planned(storage: AbstractStorage) -> tuple[int, int]:
    """Returns how many units and prompts a run has; zeros where nothing says so."""
    try:
        plan = read_plan(storage)
    except (StorageError, FileNotFoundError):
        return 0, 0
    return sum(plan.num_units(side) for side in SIDES), plan.num_prompts
