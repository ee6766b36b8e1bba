"""The former steer that a sequential fit starts from: checked when a run is planned, and copied into it."""

from pathlib import Path

from act.errors import ActError, SteerFileError, SteerNotFoundError
from act.steer import CARD, README, TENSORS, Steer, load, readme
from pipeline import artifact
from pipeline.errors import DamagedRunError, FormerSteerError
from pipeline.folder import FORMER
from pipeline.ledger import REPAIR
from pipeline.storage import AbstractStorage, LocalStorage
from schemas.job import Job
from schemas.plan import Plan


def check_former(located: Job, plan: Plan) -> str:
    """Returns the checksum of the steer that a job starts from, which names its content; empty where there is none.

    Args:
        located: The job, with absolute paths.
        plan: Its plan, so far.

    Raises:
        FormerSteerError: It cannot be read, or is not of these sites, weights and kind of map.
    """
    place = located.estimation.start
    if place is None:
        return ""
    if "://" in place:
        raise FormerSteerError(place, "a URL", "a folder on this machine")
    try:
        card = load(place).card
    except (ActError, OSError, RuntimeError) as exc:  # a link that leads to itself is a RuntimeError
        raise FormerSteerError(place, f"no steer ({exc})", "a folder with one") from exc
    widths = {site.hookpoint: site.width for site in plan.sites}
    for site in card.sites:
        if site.hookpoint not in widths:
            raise FormerSteerError(place, f"the site {site.hookpoint}", "one whose sites are all among the hookpoints")
        if site.width != widths[site.hookpoint]:
            found = f"{site.width} neurons at {site.hookpoint}"
            raise FormerSteerError(place, found, f"{widths[site.hookpoint]}, as the model has")
    if card.checkpoint_fingerprint not in {"", plan.model.fingerprint}:
        found = f"the model files {card.checkpoint_fingerprint[:12]}"
        raise FormerSteerError(place, found, f"one fitted on those of this job, {plan.model.fingerprint[:12]}")
    if (card.method == "quantile") != (plan.spec["transport"]["method"] == "quantile"):
        found = f"maps of the method {card.method}"
        raise FormerSteerError(place, found, "quantile maps for quantile maps, and lines for lines")
    return card.checksum


def copy_former(storage: AbstractStorage, plan: Plan, located: Job) -> None:
    """Copies the steer that a run starts from into it, unless it is there.

    Raises:
        DamagedRunError: It changed since it was planned.
        StoreError: The storage refuses.
    """
    if not plan.start or all(storage.exists(f"{FORMER}/{name}") for name in (CARD, TENSORS, README)):
        return
    place = Path(located.estimation.start or "").resolve()
    card = load(place).card
    if card.checksum != plan.start:
        problem = f"{place} is not the steer of the plan; it changed while it was read"
        raise DamagedRunError(storage.place(FORMER), problem, REPAIR)
    files = {TENSORS: (place / TENSORS).read_bytes(), README: readme(card).encode(), CARD: (place / CARD).read_bytes()}
    for name, data in files.items():
        storage.write(f"{FORMER}/{name}", data)


def standing_alone(located: Job, storage: AbstractStorage) -> str | None:
    """Returns where the steer lies that a job starts from: in the run itself, where that has it and it is gone."""
    place = located.estimation.start
    if place is None or Path(place).exists() or not isinstance(storage, LocalStorage):
        return place
    return str(storage.root / FORMER) if storage.exists(f"{FORMER}/{CARD}") else place


def former_of(storage: AbstractStorage, plan: Plan) -> Steer | None:
    """Returns the steer that a run starts from, every byte of it checked; None where there is none.

    Raises:
        DamagedRunError: It is not there, or not as it was planned.
    """
    if not plan.start:
        return None
    try:
        steer = artifact.load_at(storage, FORMER)
    except (SteerFileError, SteerNotFoundError) as exc:
        raise DamagedRunError(storage.place(FORMER), str(exc), REPAIR) from exc
    if steer.card.checksum != plan.start:
        raise DamagedRunError(storage.place(FORMER), "it is not the steer that the plan starts from", REPAIR)
    return steer
