"""What the report shows, gathered from a run folder: values alone, nothing drawn or worded yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from act.errors import SteerNotFoundError
from act.steer import Steer
from jobs.report.laws import NeuronLaws, most_moved
from jobs.stages import read_timings
from pipeline import artifact
from pipeline.errors import DamagedRunError
from pipeline.folder import TIMINGS
from pipeline.laws import Laws
from pipeline.ledger import REPAIR, Ledger
from pipeline.plan import read_plan
from pipeline.storage import AbstractStorage
from schemas.card import SiteCard
from schemas.plan import SIDES, Plan, SideName
from schemas.receipt import Quarantined, Receipt
from schemas.timings import Timings

MOST_SITES = 500
MOST_LOST = 100


@final
@dataclass(frozen=True)
class Generation:
    """A text that the model wrote under the steer.

    Args:
        prompt: What it was given.
        strength: Strength of the steer.
        text: What it wrote.
    """

    prompt: str
    strength: float
    text: str


@final
@dataclass(frozen=True)
class Prompts:
    """What became of one side's prompts.

    Args:
        side: ``source`` or ``target``.
        num_prompts: Prompts that the side names.
        num_samples: Samples that its laws rest on.
        num_tokens: Real tokens that the model saw.
        num_truncated: Prompts cut to `max_tokens`.
        num_quarantined: Prompts that gave no activation.
        quarantined: The first `MOST_LOST` of them.
    """

    side: SideName
    num_prompts: int
    num_samples: int
    num_tokens: int
    num_truncated: int
    num_quarantined: int
    quarantined: tuple[Quarantined, ...]


@final
@dataclass(frozen=True)
class Cost:
    """What the run took.

    Args:
        num_prompts: Prompts of both sides.
        num_tokens: Real tokens that the model saw.
        num_workers: Workers; 0 for the process itself.
        stages: Wall time of each stage in seconds, in order; empty when the run kept none.
        prompts_per_second: Prompts a second of the ``extract`` stage; None when the run kept no times.
        peak_memory: Highest resident memory of any worker, in bytes.
        activations: Bytes of the stored activations.
        sketches: Bytes of the stored sketches of units.
    """

    num_prompts: int
    num_tokens: int
    num_workers: int
    stages: Mapping[str, float]
    prompts_per_second: float | None
    peak_memory: int
    activations: int
    sketches: int

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.stages.values())


@final
@dataclass(frozen=True)
class Texts:
    """Generations as a table.

    Args:
        strengths: Its columns, ascending.
        rows: Each prompt with its text at each strength, None where there is none.
    """

    strengths: tuple[float, ...]
    rows: tuple[tuple[str, tuple[str | None, ...]], ...]


@final
@dataclass(frozen=True)
class Facts:
    """Everything that the report shows.

    Args:
        plan: The plan.
        steer: The steer.
        cost: What the run took.
        prompts: What became of the prompts, by side.
        sites: The sites that are listed: all, or the `MOST_SITES` that are moved farthest, in execution order.
        neurons: The most moved neurons, farthest first.
        texts: The generations that the caller gave.
    """

    plan: Plan
    steer: Steer
    cost: Cost
    prompts: tuple[Prompts, ...]
    sites: tuple[SiteCard, ...]
    neurons: tuple[NeuronLaws, ...]
    texts: Texts


def gather(storage: AbstractStorage, generations: Sequence[Generation]) -> Facts:
    """Returns what there is to show of a finished run.

    Raises:
        RunNotFoundError: There is no run.
        SteerNotFoundError: The run has no steer yet.
        DamagedRunError: Parts of the run are missing or do not belong together.
    """
    plan = read_plan(storage)
    steer = artifact.find(storage, plan)
    if steer is None:
        raise SteerNotFoundError(artifact.opened(storage))
    receipts = _receipts(storage, plan)
    return Facts(
        plan=plan,
        steer=steer,
        cost=_cost(plan, _timings(storage), receipts),
        prompts=tuple(_prompts(plan, side, [one for one in receipts if one.side == side]) for side in SIDES),
        sites=_listed(steer.card.sites),
        neurons=most_moved(plan, steer, Laws(storage, plan)),
        texts=_table(generations),
    )


def _receipts(storage: AbstractStorage, plan: Plan) -> list[Receipt]:
    done, wanted = list(Ledger(storage, plan).receipts()), sum(plan.num_units(side) for side in SIDES)
    if len(done) < wanted:
        problem = f"{wanted - len(done)} are missing though the run has a steer"
        raise DamagedRunError(storage.place("receipts"), problem, REPAIR)
    return done


def _timings(storage: AbstractStorage) -> Timings | None:
    return read_timings(storage) if storage.exists(TIMINGS) else None


def _cost(plan: Plan, timings: Timings | None, receipts: Sequence[Receipt]) -> Cost:
    kept = timings or Timings(workers=len({receipt.worker for receipt in receipts}))
    outputs = [output for receipt in receipts for output in receipt.outputs]
    extracting = kept.stages.get("extract", 0.0)
    return Cost(
        num_prompts=plan.num_prompts,
        num_tokens=sum(int(receipt.num_tokens.sum()) for receipt in receipts),
        num_workers=kept.workers,
        stages=kept.in_order,
        prompts_per_second=kept.prompts / extracting if kept.prompts and extracting > 0 else None,
        peak_memory=max(receipt.peak_memory for receipt in receipts),
        activations=sum(output.size for output in outputs if output.kind == "activations"),
        sketches=sum(output.size for output in outputs if output.kind != "activations"),
    )


def _prompts(plan: Plan, side: SideName, receipts: Sequence[Receipt]) -> Prompts:
    lost = [one for receipt in receipts for one in receipt.quarantined]
    return Prompts(
        side=side,
        num_prompts=plan.side(side).num_prompts,
        num_samples=sum(receipt.num_samples(plan.rows_per_prompt) for receipt in receipts),
        num_tokens=sum(int(receipt.num_tokens.sum()) for receipt in receipts),
        num_truncated=sum(receipt.num_truncated for receipt in receipts),
        num_quarantined=len(lost),
        quarantined=tuple(lost[:MOST_LOST]),
    )


def _listed(sites: Sequence[SiteCard]) -> tuple[SiteCard, ...]:
    farthest = sorted(range(len(sites)), key=lambda number: -sites[number].displacement)[:MOST_SITES]
    return tuple(sites[number] for number in sorted(farthest))


def _table(generations: Sequence[Generation]) -> Texts:
    strengths = sorted({generation.strength for generation in generations})
    texts = {(generation.prompt, generation.strength): generation.text for generation in generations}
    prompts = dict.fromkeys(generation.prompt for generation in generations)
    rows = ((prompt, tuple(texts.get((prompt, strength)) for strength in strengths)) for prompt in prompts)
    return Texts(tuple(strengths), tuple(rows))
