"""The state of a run: how far it is, what it lost, and whether its steer is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from act.steer import CARD
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.plan import read_plan
from pipeline.reduce import running
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
        tokens: Real tokens that the model saw so far.
        worker_seconds: Seconds that workers spent on finished units.
        steer: The steer's folder, once it is there.
        fingerprint: Fingerprint of the plan.
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
    tokens: int
    worker_seconds: float
    steer: str | None
    fingerprint: str
    running: tuple[RunningSite, ...]


def status(run: Path) -> Status:
    """Returns the state of a run, from its plan, its receipts, and what its reducers told.

    Raises:
        RunNotFoundError: The folder holds no run.
        DamagedRunError: The plan or a receipt cannot be read.
    """
    folder = RunFolder(run)
    plan = read_plan(folder)
    receipts, missing = Ledger(folder, plan).split(plan.units())
    there = (folder.steer / CARD).is_file()
    return Status(
        name=plan.spec["name"],
        state="done" if there else "extracting" if missing else "fitting",
        units_done=len(receipts),
        units=len(receipts) + len(missing),
        prompts_done=sum(receipt.num_prompts for receipt in receipts),
        prompts=sum(plan.side(name).num_prompts for name in SIDES),
        truncated=sum(receipt.num_truncated for receipt in receipts),
        quarantined=sum(len(receipt.quarantined) for receipt in receipts),
        tokens=sum(sum(receipt.num_tokens) for receipt in receipts),
        worker_seconds=sum(receipt.seconds for receipt in receipts),
        steer=str(folder.steer) if there else None,
        fingerprint=plan.fingerprint,
        running=running(folder, plan, receipts),
    )
