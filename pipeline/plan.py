"""Planning: a job becomes a plan, checked against the model, the prompts and the machine before any work."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.errors import (
    DamagedRunError,
    DeviceError,
    MemoryPlanError,
    OtherPlanError,
    QuotaError,
    RunNotFoundError,
)
from pipeline.folder import RunFolder
from pipeline.models import AbstractCheckpoint, PackingRule, open_checkpoint
from pipeline.prompts import fingerprint
from schemas import files, record
from schemas.job import Job
from schemas.plan import CHUNK_NEURONS, SIDES, Memory, Numerics, Plan

_FLOAT32 = 4


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
    checkpoint = open_checkpoint(located.model, cache)
    spec = job.model_dump(mode="json")
    survey = checkpoint.survey(job.hookpoints, packing_rule(spec), device)
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
        rows_per_prompt=job.compute.max_tokens if job.pooling == "all" else 1,
        memory=Memory(0, 0, 0, 0),
        disk=0,
    )
    available = machine.memory_per_worker(device, job.compute.workers)
    block = _largest_unit(plan) * plan.rows_per_prompt * plan.width * _FLOAT32
    memory = Memory(plan.model.weight_bytes, survey.forward_bytes, block, available)
    plan = dataclasses.replace(plan, memory=memory, disk=_disk(plan))
    _check_budget(plan, job)
    return plan, checkpoint


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
    width = -(-plan.width // CHUNK_NEURONS) * CHUNK_NEURONS
    rows = 0
    for name in SIDES:
        size = min(plan.unit_size, plan.side(name).num_prompts)
        rows += size * -(-plan.side(name).num_prompts // size)
    return rows * plan.rows_per_prompt * width * _FLOAT32


def _check_budget(plan: Plan, job: Job) -> None:
    if plan.memory.worker > plan.memory.available:
        raise MemoryPlanError(dataclasses.astuple(plan.memory))
    if plan.disk > job.store.quota:
        raise QuotaError(plan.disk, job.store.quota)
