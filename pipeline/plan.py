"""Planning: a job becomes a plan, checked against the model, the prompts and the machine before any work."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.errors import (
    DamagedRunError,
    DeviceError,
    ExactLawError,
    MemoryPlanError,
    OtherPlanError,
    PairsPlanError,
    QuotaError,
    RunNotFoundError,
    SampleCountError,
)
from pipeline.folder import RunFolder
from pipeline.models import AbstractCheckpoint, PackingRule, open_checkpoint
from pipeline.prompts import fingerprint
from pipeline.reduce import num_reducers, shares
from pipeline.sketch.arrays import MAX_SAMPLES
from pipeline.store.sketches import words_per_neuron
from schemas import files, record
from schemas.job import Job
from schemas.plan import EXACT_SAMPLES, LAWS, SIDES, Law, Memory, Numerics, Plan, whole_chunks

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


def make_plan(job: Job, base: Path, cache: Path) -> tuple[Plan, AbstractCheckpoint]:
    """Returns the plan of a job and its model on disk. Writes nothing.

    Args:
        job: The job as written.
        base: Folder against which its relative paths are resolved.
        cache: Folder for converted checkpoints.

    Raises:
        InputError: The job names something that is not there, or that does not fit this machine.
        HookpointNotFoundError: A hookpoint matches no module.
    """
    located = job.located(base)
    device = machine.pick_device(job.compute.device)
    if job.compute.workers and device.startswith("cuda:"):
        raise DeviceError(device)
    source, target = fingerprint(located.source), fingerprint(located.target)
    if job.transport.method == "actadd" and (source.num_prompts != target.num_prompts or job.pooling == "all"):
        raise PairsPlanError(source.num_prompts, target.num_prompts)
    checkpoint = open_checkpoint(located.model, cache)
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
        law=_law(job, max(source.num_prompts, target.num_prompts) * rows_per_prompt),
        memory=Memory(0, 0, 0, 0, 0, 0),
        disk=0,
        sketch_disk=0,
    )
    available = machine.memory_per_worker(device, job.compute.workers)
    plan = dataclasses.replace(
        plan,
        memory=_memory(plan, survey.forward_bytes, available),
        disk=_disk(plan),
        sketch_disk=sum(plan.sketches(law, unit) for law in LAWS for unit in plan.units()) * plan.width * SKETCH_BYTES,
    )
    _check_budget(plan, job, device)
    return plan, checkpoint


def _law(job: Job, num_samples: int) -> Law:
    """Returns how samples become laws: values are kept while both sides are small, unless the spec says otherwise.

    Raises:
        SampleCountError: A sketch would have to count more than its counters hold.
    """
    kind = job.law.kind
    if kind == "auto":
        kept = num_samples <= EXACT_SAMPLES or job.transport.method == "iti-probe"
        kind = "exact" if kept else "sketch"
    if kind == "sketch" and num_samples > MAX_SAMPLES:
        raise SampleCountError(num_samples, MAX_SAMPLES)
    return Law(kind, job.law.precision)


def _memory(plan: Plan, forward: int, available: int) -> Memory:
    block = _largest_unit(plan) * plan.rows_per_prompt * plan.width * _WORD
    pooled, tokens = (words_per_neuron(plan.precision(law)) * _WORD for law in ("source", "tokens"))
    written = max(pooled if plan.law.kind == "sketch" else 0, tokens)
    owned = max(sum(plan.sites[n].width for n in share) for share in shares(plan.sites, num_reducers(plan)))
    widest = max(site.width for site in plan.sites)
    reducer = owned * (2 * pooled + tokens) + widest * pooled if plan.law.kind == "sketch" else 0
    return Memory(plan.model.weight_bytes, forward, block, plan.width * (tokens + written), reducer, available)


def check_free(folder: RunFolder, plan: Plan) -> None:
    """Checks that a folder is missing, empty, or a run of the same plan.

    Raises:
        OtherPlanError: It holds a run of another plan, or other things; names what differs.
    """
    if folder.plan.exists():
        _check_same(folder, plan)
    elif folder.root.is_dir():
        for name in sorted(path.name for path in folder.root.iterdir() if not path.name.startswith(".")):
            raise OtherPlanError(str(folder.root), f"it holds {name} but no plan.json")


def settle(plan: Plan, folder: RunFolder) -> None:
    """Writes the plan of a new run; a run that exists keeps its own, which must be the same.

    Raises:
        OtherPlanError: The folder holds a run of another plan; names what differs.
    """
    if not files.publish_first(folder.plan, record.dump(plan)):
        _check_same(folder, plan)


def _check_same(folder: RunFolder, plan: Plan) -> None:
    earlier = read_plan(folder)
    if earlier.fingerprint != plan.fingerprint:
        raise OtherPlanError(str(folder.root), difference(earlier, plan))


def read_plan(folder: RunFolder) -> Plan:
    """Returns the plan of a run.

    Raises:
        RunNotFoundError: The folder holds no run.
        DamagedRunError: Its plan cannot be read.
    """
    try:
        return record.load(Plan, folder.plan.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise RunNotFoundError(str(folder.root)) from exc
    except record.RecordError as exc:
        raise DamagedRunError(str(folder.plan), str(exc)) from exc


def difference(earlier: Plan, now: Plan) -> str:
    """Returns the first thing in which two plans compute different numbers, in words."""
    before, after = _flat(earlier.identity), _flat(now.identity)
    for name in [*before, *after]:
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
    if not plan.keeps_activations:
        return 0
    rows = 0
    for name in SIDES:
        size = min(plan.unit_size, plan.side(name).num_prompts)
        rows += size * -(-plan.side(name).num_prompts // size)
    return rows * plan.rows_per_prompt * whole_chunks(plan.width) * _WORD


def _check_budget(plan: Plan, job: Job, device: str) -> None:
    memory, workers = plan.memory, max(job.compute.workers, 1)
    reducers = memory.reducer * num_reducers(plan)
    beside = reducers // workers if device == "cpu" else 0
    if memory.worker + beside > memory.available:
        raise MemoryPlanError(memory)
    if device != "cpu" and reducers > machine.memory_per_worker("cpu", 1):
        raise MemoryPlanError(memory)
    if plan.law.kind == "exact":
        num_samples = max(plan.source.num_prompts, plan.target.num_prompts) * plan.rows_per_prompt
        at_once = min(SITES_AT_ONCE, machine.num_cores(), len(plan.sites))
        needed = at_once * _COPIES * num_samples * max(site.width for site in plan.sites) * _WORD
        host = machine.memory_per_worker("cpu", 1)
        if needed > host:
            raise ExactLawError(num_samples, needed, host)
    if plan.disk + plan.sketch_disk > job.store.quota:
        raise QuotaError(plan.disk + plan.sketch_disk, job.store.quota)
