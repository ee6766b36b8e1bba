"""Extraction: one unit of prompts through the model, its pooled activations into one shard, its receipt last."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch

from act.capture import Capture
from act.fingerprint import fingerprint
from pipeline import machine
from pipeline.errors import OtherNumericsError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger, measure
from pipeline.models import AbstractModel, Packed, open_located
from pipeline.plan import packing_rule
from pipeline.prompts import Snapshot
from pipeline.store import ActivationStore
from pipeline.store.activations import Block
from schemas.job import Job
from schemas.plan import SIDES, Plan, SideName, Unit
from schemas.receipt import Quarantined, Receipt

EMPTY = "empty: no tokens"


@final
class Extractor:
    """Runs units of prompts through the model and stores their pooled activations.

    A plain class: only `pipeline.cluster` makes it an actor, so tests call it in process. The model is loaded by
    `ready`, or by the first unit.

    Args:
        plan: The plan.
        root: The run folder.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan, self._folder = plan, RunFolder(root)
        self._store = ActivationStore(self._folder.activations, plan)
        self._ledger = Ledger(self._folder, plan)
        self._block: Block = np.empty((0, plan.width), np.float32)

    def ready(self) -> int:
        """Loads the model, and returns the process id of the worker.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        self._fingerprint  # noqa: B018 - loads the model
        return os.getpid()

    def extract(self, unit: Unit) -> Receipt:
        """Stores one unit and commits its receipt.

        Safe to retry on any worker: the receipt is written last, under the unit's name, and a unit that already has
        one is not run again.
        """
        return self._ledger.find(unit) or self._extract(unit)

    def _extract(self, unit: Unit) -> Receipt:
        begin = time.perf_counter()
        prompts = self._prompts[unit.side].unit(unit.index)
        packed = self._model.pack(prompts, unit.start, packing_rule(self._plan.spec))
        block = self._clear(unit)
        start = time.perf_counter()
        with _threads(self._plan.numerics.threads):
            self._run(packed, block)
        compute = time.perf_counter() - start
        num_tokens, quarantined = self._judge(unit, packed, block)
        path = self._store.write(unit, block)
        size, checksum = measure(path)
        receipt = Receipt(
            plan=self._plan.fingerprint,
            model=self._fingerprint,
            side=unit.side,
            unit=unit.index,
            num_prompts=unit.num_prompts,
            num_tokens=num_tokens,
            num_truncated=packed.num_truncated,
            quarantined=quarantined,
            shard=path.relative_to(self._folder.root).as_posix(),
            size=size,
            crc32c=checksum,
            seconds=time.perf_counter() - begin,
            compute_seconds=compute,
            worker=os.getpid(),
            peak_memory=machine.peak_memory(),
        )
        return self._ledger.commit(unit, receipt)

    @cached_property
    def _model(self) -> AbstractModel:
        job, wanted = Job.model_validate(self._plan.spec), self._plan.numerics
        device = machine.pick_device(job.compute.device)
        found = machine.numerics(device, wanted.dtype, wanted.threads, wanted.attention)
        if found != wanted:
            raise OtherNumericsError(str(wanted), str(found))
        with _threads(wanted.threads):
            return open_located(job.model, Path(self._plan.location)).load(device)

    @cached_property
    def _prompts(self) -> dict[SideName, Snapshot]:
        return {name: Snapshot.open(self._folder.prompts(name)) for name in SIDES}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._model.root)

    def _clear(self, unit: Unit) -> Block:
        """The block of a unit, NaN everywhere. One allocation serves all units, so a worker's memory stays flat."""
        rows = unit.num_prompts * self._plan.rows_per_prompt
        if len(self._block) < rows:
            self._block = np.empty((rows, self._plan.width), np.float32)
        block = self._block[:rows]
        block.fill(np.nan)
        return block

    def _run(self, packed: Packed, block: Block) -> None:
        columns = list(self._plan.columns.values())
        rows = np.empty(0, np.intp)

        def keep(site: int, sample: torch.Tensor) -> None:
            block[rows, columns[site]] = sample.float().cpu().numpy()

        clock = self._model.clock(self._plan.timesteps)
        capture = Capture(self._model.modules, self._plan.sites, self._plan.spec["pooling"], keep, clock)
        with capture.reading():
            for batch in packed.batches:
                rows = self._rows(batch.rows, packed.num_tokens)
                with capture.batch(batch.spans):
                    self._model.forward(batch)

    def _rows(self, prompts: tuple[int, ...], num_tokens: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Rows of the block that the samples of some prompts go to, in the order in which pooling gives them."""
        per_prompt = self._plan.rows_per_prompt
        if per_prompt == 1:
            return np.asarray(prompts, np.intp)
        return np.concatenate([row * per_prompt + np.arange(num_tokens[row]) for row in prompts])

    def _judge(self, unit: Unit, packed: Packed, block: Block) -> tuple[tuple[int, ...], tuple[Quarantined, ...]]:
        """Quarantines the prompts that have no tokens, or whose activations are not finite."""
        per_prompt = self._plan.rows_per_prompt
        num_tokens, quarantined = list(packed.num_tokens), []
        for row, count in enumerate(num_tokens):
            reason = (
                EMPTY
                if count == 0
                else self._unfinite(block[row * per_prompt : row * per_prompt + min(count, per_prompt)])
            )
            if reason:
                quarantined.append(Quarantined(unit.start + row, reason))
                num_tokens[row] = 0
        return tuple(num_tokens), tuple(quarantined)

    def _unfinite(self, samples: Block) -> str | None:
        finite = np.isfinite(samples).all(axis=0)
        if finite.all():
            return None
        column = int(np.argmin(finite))
        site = next(name for name, part in self._plan.columns.items() if part.start <= column < part.stop)
        return f"non-finite activation at {site}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A context with a number of intra-op threads; what the process had before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
