"""The state of a run: how far it is, what it lost, and whether its steer is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from pipeline import artifact
from pipeline.folder import SEQUENTIAL
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.reduce import running
from pipeline.storage import storage_at
from pipeline.tally import Tally
from schemas.plan import SIDES
from schemas.running import RunningSite


@final
@dataclass(frozen=True)
class Status:
    """The state of a run.

    Args:
        name: Name of the steer.
        state: ``done`` when the steer is there, ``fitting`` when all units are, else ``extracting``.
        units_done: Units with a receipt.
        units: All units.
        prompts_done: Prompts of the units that are done.
        prompts: All prompts.
        truncated: Prompts cut to `max_tokens` so far.
        quarantined: Prompts that gave no activation so far.
        losses: Which they are, and why.
        tokens: Real tokens that the model saw so far.
        worker_seconds: Seconds that workers spent on finished units.
        steer: The steer's folder, once it is there.
        fingerprint: Fingerprint of the plan.
        sites: All sites.
        sites_fitted: Sites whose map a sequential fit has written down; None of a simultaneous fit.
        running: The laws of the sites so far, in execution order.
    """

    name: str
    state: Literal["extracting", "fitting", "done"]
    units_done: int
    units: int
    prompts_done: int
    prompts: int
    truncated: int
    quarantined: int
    losses: tuple[str, ...]
    tokens: int
    worker_seconds: float
    steer: str | None
    fingerprint: str
    sites: int
    sites_fitted: int | None
    running: tuple[RunningSite, ...]


def status(run: str | Path) -> Status:
    """Returns the state of a run, from its plan, its receipts, and what its reducers told.

    Args:
        run: The run folder, or its URL.

    Raises:
        RunNotFoundError: There is no run.
        DamagedRunError: The plan or a receipt cannot be read.
    """
    storage = storage_at(run)
    plan = read_plan(storage)
    tally = Tally(plan)
    for receipt in Ledger(storage, plan).receipts():
        tally.add(receipt)
    units = sum(plan.num_units(side) for side in SIDES)
    there = artifact.current(storage) is not None
    return Status(
        name=plan.spec["name"],
        state="done" if there else "extracting" if tally.num_units < units else "fitting",
        units_done=tally.num_units,
        units=units,
        prompts_done=tally.num_prompts,
        prompts=plan.num_prompts,
        truncated=tally.num_truncated,
        quarantined=tally.num_lost,
        losses=tuple(tally.losses),
        tokens=tally.num_tokens,
        worker_seconds=tally.worker_seconds,
        steer=artifact.opened(storage) if there else None,
        fingerprint=plan.fingerprint,
        sites=len(plan.sites),
        sites_fitted=len(storage.keys(SEQUENTIAL)) if plan.sequential else None,
        running=running(storage, plan),
    )
