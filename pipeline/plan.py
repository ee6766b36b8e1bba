"""Planning: a job becomes a plan, checked against the model, the prompts and the machine before any work."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.errors import (
    DamagedRunError,
    DeviceError,
    ExactLawError,
    LockstepPlanError,
    MemoryPlanError,
    OtherPlanError,
    PairsPlanError,
    QuotaError,
    RunNotFoundError,
    SampleCountError,
)
from pipeline.folder import LEASE, PLAN, RunFolder
from pipeline.former import check_former
from pipeline.ledger import REPAIR
from pipeline.models import AbstractCheckpoint, PackingRule, Waiting, open_checkpoint
from pipeline.prompts import Snapshot, fingerprint
from pipeline.reduce import WRITE_EVERY, shares
from pipeline.sketch.arrays import MAX_SAMPLES
from pipeline.storage import AbstractStorage, storage_at
from pipeline.store.sketches import words_per_neuron
from schemas import record
from schemas.job import Job
from schemas.plan import EXACT_SAMPLES, LAWS, SIDES, Law, Memory, Numerics, Plan, SideFacts, SideName, whole_chunks

#: Share of the prompts whose activations the policy ``sample`` keeps, and what compression leaves of the others.
SAMPLE_SHARE = 0.012

#: Units that wait or run at a worker.
WINDOW = 2

#: Bytes of a neuron's sketch on disk. A Gaussian law of a million samples takes fewer, a unit much fewer.
SKETCH_BYTES = 350

#: Sites that a fit has in memory at once, at most.
SITES_AT_ONCE = 4

#: Copies of a site's samples, both sides together, while exact laws are made of them.
_COPIES = 8

_WORD = 4  #: bytes of a float32, and of a sketch's word


def packing_rule(spec: Mapping[str, Any]) -> PackingRule:
    """Returns the rule by which units become micro-batches, from a plan's spec."""
    compute = spec["compute"]
    return PackingRule(spec["template"], compute["max_tokens"], compute["batch_tokens"])


def make_plan(
    job: Job, base: Path, cache: Path, opened: AbstractCheckpoint | None = None
) -> tuple[Plan, AbstractCheckpoint]:
    """Returns the plan of a job and its model on disk. Writes nothing.

    Args:
        job: The job as written.
        base: Folder against which its relative paths are resolved.
        cache: Folder for converted checkpoints.
        opened: The model on disk, if it is open already; its files are then not hashed again.

    Raises:
        InputError: The job names something that is not there, or that does not fit this machine.
        HookpointNotFoundError: A hookpoint matches no module.
    """
    located = job.located(base)
    device = machine.pick_device(job.compute.device)
    if job.compute.workers and device.startswith("cuda:"):
        raise DeviceError(device)
    source, target = (_side(located, name) for name in SIDES)
    removed = source.num_removed or target.num_removed
    if job.transport.method == "actadd" and (
        source.num_prompts != target.num_prompts or removed or job.pooling == "all"
    ):
        raise PairsPlanError(source.num_prompts - source.num_removed, target.num_prompts - target.num_removed)
    checkpoint = opened or open_checkpoint(located.model, cache)
    spec = job.model_dump(mode="json")
    survey = checkpoint.survey(job.hookpoints, packing_rule(spec), device)
    rows_per_prompt = job.compute.max_tokens if job.pooling == "all" else 1
    plan = Plan(
        version=1,
        spec=spec,
        model=checkpoint.facts,
        location=str(checkpoint.location),
        numerics=_numerics(job, device, checkpoint.attention),
        sites=survey.sites,
        timesteps=survey.timesteps,
        source=source,
        target=target,
        rows_per_prompt=rows_per_prompt,
        law={
            "source": _law(job, source.num_prompts * rows_per_prompt),
            "target": _law(job, target.num_prompts * rows_per_prompt),
        },
        memory=Memory(0, 0, 0, 0, 0, 0),
        disk=0,
        sketch_disk=0,
    )
    plan = dataclasses.replace(plan, start=check_former(located, plan))
    available = job.compute.memory or machine.memory_per_worker(device, job.compute.workers)
    waiting = checkpoint.waiting(survey.sites, packing_rule(spec), device) if plan.sequential else None
    plan = dataclasses.replace(
        plan,
        memory=_in_lockstep(plan, _memory(plan, survey.forward_bytes, available), waiting),
        disk=_disk(plan),
        sketch_disk=_sketch_disk(plan),
    )
    _check_budget(plan, job, device)
    return plan, checkpoint


def _side(located: Job, name: SideName) -> SideFacts:
    """Returns what a side selects; with an earlier run, its prompts keep their places there."""
    side = located.source if name == "source" else located.target
    return fingerprint(side, earlier_prompts(located, name))


def earlier_prompts(located: Job, name: SideName) -> Snapshot | None:
    """Returns the prompts of the run that a job extends, if it does.

    Raises:
        RunNotFoundError: There is no such run.
        DamagedRunError: Its prompts cannot be read.
    """
    if located.extends is None:
        return None
    storage = storage_at(located.extends)
    read_plan(storage)
    return Snapshot.open(storage, RunFolder(storage).prompts(name))


def _law(job: Job, num_samples: int) -> Law:
    """Returns how samples become a law: values are kept while the side is small, unless the spec says otherwise.

    Raises:
        SampleCountError: A sketch would have to count more than its counters hold.
    """
    kind = job.law.kind
    if kind == "auto":
        kept = num_samples <= EXACT_SAMPLES or job.transport.method == "iti-probe"
        kind = "exact" if kept else "sketch"
    if kind == "sketch" and num_samples > MAX_SAMPLES:
        raise SampleCountError(num_samples, MAX_SAMPLES)
    return Law(kind, job.law.precision, job.law.misfits)


def _memory(plan: Plan, forward: int, available: int) -> Memory:
    block = _largest_unit(plan) * plan.rows_per_prompt * plan.width * _WORD
    pooled = max(words_per_neuron(plan.precision(side)) for side in SIDES) * _WORD
    tokens = words_per_neuron(plan.precision("tokens")) * _WORD
    written = max(pooled if plan.sketched else 0, tokens)
    owned = max(sum(plan.sites[n].width for n in share) for share in shares(plan))
    widest = max(site.width for site in plan.sites)
    reducer = owned * (2 * pooled + tokens) + widest * pooled if plan.sketched else 0
    return Memory(plan.model.weight_bytes, forward, block, plan.width * (tokens + written), reducer, available)


def _in_lockstep(plan: Plan, memory: Memory, waiting: Waiting | None) -> Memory:
    """Returns what a worker needs that takes its share of the source's units through the model together.

    Args:
        plan: The plan.
        memory: What it needs for one unit.
        waiting: What a full micro-batch keeps alive while it waits; None if nothing does.
    """
    if waiting is None:
        return memory
    share, max_tokens = _largest_share(plan), plan.spec["compute"]["max_tokens"]
    samples = share * plan.rows_per_prompt * plan.width * _WORD
    tokens = min(plan.sketched_units("tokens"), -(-share // plan.unit_size))
    sketches = tokens * plan.width * words_per_neuron(plan.precision("tokens")) * _WORD
    # Single tokens wait until the frame of their site is known.
    group = -(-len(plan.sites) // (plan.blocks or len(plan.sites)))
    values = min(tokens * plan.unit_size, share) * max_tokens * group * max(site.width for site in plan.sites) * _WORD
    at_once = 1 if plan.blocks else -(-share // waiting.num_prompts)
    return dataclasses.replace(memory, held=samples + sketches + values, waiting=at_once * waiting.num_bytes)


def _largest_share(plan: Plan) -> int:
    """Prompts of the source that one worker takes, at most: whole units."""
    units = -(-plan.num_units("source") // _num_workers(plan))
    return min(units * plan.unit_size, plan.source.num_prompts)


def _num_workers(plan: Plan) -> int:
    return max(1, int(plan.spec["compute"]["workers"]))


def check_free(storage: AbstractStorage, plan: Plan) -> None:
    """Checks that a place is missing, empty, or a run of the same plan.

    Raises:
        OtherPlanError: It holds a run of another plan, or other things; names what differs.
    """
    if storage.exists(PLAN):
        _check_same(storage, plan)
        return
    for name in storage.names():
        if name != LEASE and not name.startswith("."):
            raise OtherPlanError(storage.uri, f"it holds {name} but no {PLAN}")


def as_begun(plan: Plan, storage: AbstractStorage) -> Plan:
    """Returns the plan with as many reducers as the run began with: what they merged goes by their shares."""
    if not storage.exists(PLAN):
        return plan
    compute = plan.spec["compute"] | {"reducers": read_plan(storage).spec["compute"]["reducers"]}
    return dataclasses.replace(plan, spec={**plan.spec, "compute": compute})


def settle(plan: Plan, storage: AbstractStorage) -> None:
    """Writes the plan of a new run; a run that exists keeps its own, which must be the same.

    Raises:
        OtherPlanError: There is a run of another plan; names what differs.
    """
    if not storage.create(PLAN, record.seal(plan)):
        _check_same(storage, plan)


def _check_same(storage: AbstractStorage, plan: Plan) -> None:
    earlier = read_plan(storage)
    if earlier.fingerprint != plan.fingerprint:
        raise OtherPlanError(storage.uri, difference(earlier, plan))


def read_plan(storage: AbstractStorage) -> Plan:
    """Returns the plan of a run.

    Raises:
        RunNotFoundError: There is no run.
        DamagedRunError: Its plan cannot be read.
    """
    try:
        return record.unseal(Plan, storage.read(PLAN))
    except FileNotFoundError as exc:
        raise RunNotFoundError(storage.uri) from exc
    except record.RecordError as exc:
        raise DamagedRunError(storage.place(PLAN), str(exc), REPAIR) from exc


def difference(earlier: Plan, now: Plan) -> str:
    """Returns the first thing in which two plans compute different numbers, in words."""
    return first_difference(earlier.identity, now.identity)


def first_difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the first thing in which two trees of facts differ, in words."""
    before, after = _flat(dict(earlier)), _flat(dict(now))
    for name in [*before, *after]:
        if before.get(name) != after.get(name) and name == "sites":
            return "its hookpoints are others"
        if before.get(name) != after.get(name):
            return f"{name} was {_short(before.get(name))} and is {_short(after.get(name))}"
    return "nothing differs"


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _numerics(job: Job, device: str, attention: str) -> Numerics:
    return machine.numerics(device, job.model.dtype, job.compute.threads, attention)


def _largest_unit(plan: Plan) -> int:
    return min(plan.unit_size, max(plan.source.num_prompts, plan.target.num_prompts))


def _disk(plan: Plan) -> int:
    """Bytes of all shards: a shard has full height and its width is rounded up to whole chunks."""
    total = 0
    for name in SIDES:
        size = min(plan.unit_size, plan.side(name).num_prompts)
        rows = size * plan.num_units(name)
        share = {"all": 1.0, "sample": SAMPLE_SHARE, "none": 0.0}[plan.kept(name)]
        total += int(rows * plan.rows_per_prompt * whole_chunks(plan.width) * _WORD * share)
    return total


def _sketch_disk(plan: Plan) -> int:
    """About the bytes of sketches that lie there at once: those of all units, or of those that wait to be merged."""
    counts = [plan.sketched_units(law) for law in LAWS]
    if plan.compacts:
        at_once = WRITE_EVERY + 2 * max(1, plan.spec["compute"]["workers"]) * WINDOW
        counts = [min(count, at_once) for count in counts]
    folds = 2 * sum(count > 0 for count in counts)
    return (sum(counts) + folds) * plan.width * SKETCH_BYTES


def _check_lockstep(plan: Plan) -> None:
    """Checks that what waits at a site has room, in memory or on the disk of temporary files.

    Raises:
        LockstepPlanError: It has not; says how many prompts have.
    """
    memory, share = plan.memory, _largest_share(plan)
    disk = shutil.disk_usage(tempfile.gettempdir()).free // _num_workers(plan)
    each = memory.held / share, (memory.held + memory.waiting) / share
    alone = memory.available - (memory.worker - memory.held)
    fits = int(max(0, min(alone / each[0], (alone + disk) / each[1])))
    if alone > 0 and fits < share:
        raise LockstepPlanError(
            plan.source.num_prompts, min(fits * _num_workers(plan), plan.source.num_prompts - 1), memory, disk
        )


def _check_budget(plan: Plan, job: Job, device: str) -> None:
    memory, workers = plan.memory, max(job.compute.workers, 1)
    reducers = memory.reducer * len(shares(plan))
    beside = reducers // workers if device == "cpu" else 0
    if plan.sequential:
        _check_lockstep(plan)
    if memory.worker + beside > memory.available:
        raise MemoryPlanError(memory)
    if device != "cpu" and reducers > machine.memory_per_worker("cpu", 1):
        raise MemoryPlanError(memory)
    exact = [plan.side(name).num_prompts for name in SIDES if plan.law[name].kind == "exact"]
    if exact:
        num_samples = max(exact) * plan.rows_per_prompt
        at_once = min(SITES_AT_ONCE, machine.num_cores(), len(plan.sites))
        needed = at_once * _COPIES * num_samples * max(site.width for site in plan.sites) * _WORD
        host = machine.memory_per_worker("cpu", 1)
        if needed > host:
            raise ExactLawError(num_samples, needed, host)
    if plan.disk + plan.sketch_disk > job.store.quota:
        raise QuotaError(plan.disk + plan.sketch_disk, job.store.quota)
