"""The workers of a run on Ray: a crew of extractors that a scheduler runs, and the reducers."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, final

from pipeline.cluster.connect import connected
from pipeline.cluster.crew import Berths, RayCrew
from pipeline.cluster.reducers import RayReducers
from pipeline.errors import ClusterError
from pipeline.pieces import Pieces
from pipeline.quarantine import RunRecords
from pipeline.reduce import shares
from pipeline.scheduling import Policy, Scheduler
from pipeline.scheduling.pace import LEAST_DEADLINE
from pipeline.sequential.drive import AbstractSteppers
from pipeline.storage import storage_at
from pipeline.workers import AbstractWorkers
from schemas.plan import SIDES, LawName, Plan, Unit, side_of
from schemas.receipt import Receipt

if TYPE_CHECKING:
    from types import ModuleType

#: Floating-point operations that any worker does in a second, for the deadline of the first unit.
SLOWEST = 1e10


@final
class RayWorkers(AbstractWorkers):
    """Actors on a local Ray, or on a running cluster.

    No activation passes through Ray: an actor writes its own unit and returns the receipt. What is done about an actor
    that dies, hangs or cannot be reached, `pipeline.scheduling` says.

    Args:
        plan: The plan.
        uri: Where the run lies. Every worker must reach it, and the model, under the same name.
        policy: How patient to be; None for what suits the plan.
    """

    def __init__(self, plan: Plan, uri: str, policy: Policy | None = None) -> None:
        compute = plan.spec["compute"]
        gpus = 0 if plan.numerics.device == "cpu" else 1
        self._plan, self._uri = plan, uri
        self._policy = policy or patience(plan)
        self._berths = Berths(compute["address"], compute["workers"], compute["threads"], gpus)
        self._stack = contextlib.ExitStack()
        self._ray: ModuleType | None = None
        self._crew: RayCrew | None = None
        self._scheduler: Scheduler | None = None
        self._reducers: RayReducers | None = None

    @property
    def plan(self) -> Plan:
        """The plan whose units they run."""
        return self._plan

    def __enter__(self) -> Self:
        """Starts or joins Ray and the actors, and waits until the first of them has its model loaded.

        Raises:
            ClusterError: Ray cannot be started or joined, or lacks the cores or GPUs for these workers.
            WorkerLostError: Every worker died while it loaded the model.
        """
        from pipeline.extract import Extractor  # with the actors' other imports

        with self._stack:
            berths = self._berths
            self._ray = self._stack.enter_context(connected(berths.address, berths.num_workers * berths.threads))
            check_room(self._ray, berths)
            self._crew = RayCrew(self._ray, berths, Extractor, (self._plan, self._uri))
            self._stack.callback(self._crew.close)
            self._scheduler = Scheduler(self._crew, self._records, self._policy)
            self._reduce_anew()
            self._stack.callback(self._end_reducers)
            self._scheduler.muster()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Kills the actors and leaves Ray; a local Ray ends."""
        self._stack.close()
        self._ray = self._crew = self._scheduler = None

    def turn(self, plan: Plan, uri: str) -> None:
        """Keeps the workers and their models; the reducers are others."""
        crew, scheduler = self._inside
        self._plan, self._uri = plan, uri
        crew.turn(plan, uri)
        scheduler.turn(self._records)
        self._end_reducers()
        self._reduce_anew()

    def settle_frames(self, laws: Sequence[LawName]) -> None:
        """Chooses the frames, at as many workers as there are."""
        self._inside[1].settle((law, self._plan.unit(side_of(law), 0)) for law in laws)

    def extract(self, units: Iterable[Unit]) -> Iterator[Receipt]:
        """Keeps a few units at every worker, and takes the receipt of whichever finishes first."""
        return self._inside[1].run(units)

    @contextlib.contextmanager
    def steppers(self) -> Iterator[AbstractSteppers]:
        """Ends the extractors and starts actors that step, in their places."""
        from pipeline.cluster.steppers import RaySteppers

        self._inside[0].dismiss()
        units = -(-self._plan.num_units("source") // self._berths.num_workers)
        deadline = self._policy.deadline or self._policy.first_deadline
        steppers = RaySteppers(self._ray, self._berths, self._plan, self._uri, deadline * units, self._rehearse)
        try:
            yield steppers
        finally:
            steppers.close()

    def _rehearse(self, units: Sequence[Unit]) -> bool:
        """Runs units one by one, and returns whether something was found with which they are to be treated."""
        from pipeline.sequential.rehearsal import Rehearser  # with the actors' other imports

        records, pieces = self._records, Pieces(storage_at(self._uri))
        before = [(records.known(unit), pieces.known(unit)) for unit in units]
        crew = RayCrew(self._ray, self._berths, Rehearser, (self._plan, self._uri))
        try:
            for receipt in Scheduler(crew, records, self._policy).run(units):
                if receipt.splits:
                    pieces.remember(receipt.of(self._plan.unit_size), receipt.splits)
        finally:
            crew.close()
        return before != [(records.known(unit), pieces.known(unit)) for unit in units]

    def fold(self, receipt: Receipt) -> None:
        """Hands a unit to every reducer."""
        if self._reducers is not None:
            self._reducers.fold(receipt)

    def reduce(self) -> None:
        """Waits for the reducers; one that died is replaced, and folds what it had not written."""
        if self._reducers is not None:
            self._reducers.reduce()

    @property
    def _inside(self) -> tuple[RayCrew, Scheduler]:
        assert self._crew is not None, "workers work inside the context"
        assert self._scheduler is not None, "workers work inside the context"
        return self._crew, self._scheduler

    @property
    def _records(self) -> RunRecords:
        return RunRecords(storage_at(self._uri), self._plan)

    def _reduce_anew(self) -> None:
        if self._plan.sketched:
            self._reducers = RayReducers(self._ray, (self._plan, self._uri), shares(self._plan))

    def _end_reducers(self) -> None:
        if self._reducers is not None:
            self._reducers.close()
        self._reducers = None


def patience(plan: Plan) -> Policy:
    """Returns how patient to be with the units of a plan.

    Of a language model it is known how many operations a unit takes at most, twice the parameters a token; of other
    models nothing is.
    """
    failures = plan.spec["failures"]
    policy = dataclasses.replace(Policy(), attempts=failures["attempts"], deadline=failures["deadline"])
    if plan.model.kind != "causal-lm":
        return policy
    prompts = min(plan.unit_size, max(plan.side(name).num_prompts for name in SIDES))
    operations = 2.0 * plan.model.num_parameters * prompts * plan.spec["compute"]["max_tokens"]
    return dataclasses.replace(policy, first_deadline=LEAST_DEADLINE + operations / SLOWEST)


def check_room(ray: Any, berths: Berths) -> None:  # noqa: ANN401
    """Refuses workers that a cluster has no room for: they would wait for it for ever.

    Raises:
        ClusterError: It lacks the cores or GPUs.
    """
    there = ray.cluster_resources()
    for kind, each in (("CPU", berths.threads), ("GPU", berths.gpus)):
        wanted, found = each * berths.num_workers, int(there.get(kind, 0))
        if wanted > found:
            problem = f"{berths.num_workers} workers need {wanted} {kind}s and it has {found}; take fewer"
            raise ClusterError(berths.address, problem)
