"""Hands: the workers of a command, started when there is work, and kept for the next run of the same model."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, final

from jobs.stages import Stages
from pipeline.models import AbstractCheckpoint
from pipeline.plan import make_plan
from pipeline.workers import AbstractWorkers, InProcessWorkers
from schemas.job import Job
from schemas.plan import Plan


@final
class Hands:
    """The workers of a command.

    Args:
        runs: How many runs they are for: after the last one's units they go, and leave its fit their memory.
    """

    def __init__(self, runs: int = 1) -> None:
        self._left = runs
        self._opened: tuple[Any, AbstractCheckpoint] | None = None
        self._stack = ExitStack()
        self._workers: AbstractWorkers | None = None
        self._at = ("", "")

    def __enter__(self) -> Self:
        """Starts nobody yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends whoever is there."""
        self.rest()

    def plan(self, job: Job, base: Path, cache: Path) -> tuple[Plan, AbstractCheckpoint]:
        """Returns the plan of a job and its model on disk, which is hashed once for all runs that have it."""
        model = job.located(base).model
        opened = self._opened[1] if self._opened is not None and self._opened[0] == model else None
        planned, checkpoint = make_plan(job, base, cache, opened)
        self._opened = model, checkpoint
        return planned, checkpoint

    @property
    def workers(self) -> AbstractWorkers:
        """The workers."""
        assert self._workers is not None, "they were started"
        return self._workers

    def start(self, plan: Plan, uri: str, checkpoint: AbstractCheckpoint, stages: Stages) -> None:
        """Has workers ready for a run: those that are there if they have its model, else new ones."""
        if self._workers is not None and self._at == (plan.fingerprint, uri):
            return
        self._at = plan.fingerprint, uri
        if self._workers is not None and _model(self._workers.plan) == _model(plan):
            self._workers.turn(plan, uri)
            return
        self.rest()
        with stages.stage("model"):
            checkpoint.prepare()
        with stages.stage("workers"):
            self._workers = self._stack.enter_context(_workers(plan, uri))

    def done(self) -> None:
        """Says that the units of one more run are done."""
        self._left -= 1
        if self._left <= 0:
            self.rest()

    def rest(self) -> None:
        """Ends the workers: the memory is wanted for something else."""
        self._workers = None
        self._stack.close()


def _model(plan: Plan) -> tuple[Any, ...]:
    """What workers have loaded and how they run it: the same for another run that they may go on with."""
    compute = {key: plan.spec["compute"][key] for key in ("workers", "reducers", "address", "device", "threads")}
    return plan.model, plan.location, plan.numerics, plan.spec["model"], compute


def _workers(plan: Plan, uri: str) -> AbstractWorkers:
    if plan.spec["compute"]["workers"] == 0:
        return InProcessWorkers(plan, uri)
    from pipeline.cluster import RayWorkers  # Ray is slow to import

    return RayWorkers(plan, uri)
