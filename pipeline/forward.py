"""The forward: prompts through the model, their activations pooled into one block while it runs."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch

from act.capture import Capture
from act.fingerprint import fingerprint
from pipeline import machine
from pipeline.errors import OtherNumericsError
from pipeline.models import AbstractModel, Packed, open_located
from pipeline.plan import packing_rule
from pipeline.store.activations import Block
from schemas.job import Job
from schemas.plan import Plan

#: Takes the number of a site and the activations of its real tokens, `[tokens, neurons]`, on the model's device.
TokenSink = Callable[[int, torch.Tensor], None]


@final
class Forward:
    """Runs prompts through the model of a plan, which the first call loads.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._columns = list(plan.columns.values())
        self._block: Block = np.empty((0, plan.width), np.float32)

    @cached_property
    def model(self) -> AbstractModel:
        """The model.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        job, wanted = Job.model_validate(self._plan.spec), self._plan.numerics
        device = machine.pick_device(job.compute.device)
        found = machine.numerics(device, wanted.dtype, wanted.threads, wanted.attention)
        if found != wanted:
            raise OtherNumericsError(str(wanted), str(found))
        with machine.threads(wanted.threads):
            return open_located(job.model, Path(self._plan.location)).load(device)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights in memory."""
        return fingerprint(self.model.root)

    @property
    def device(self) -> torch.device:
        """Where the activations are."""
        return torch.device(machine.pick_device(self._plan.spec["compute"]["device"]))

    def run(self, prompts: Sequence[str | None], start: int, tokens: TokenSink | None = None) -> tuple[Packed, Block]:
        """Returns how prompts were packed, and their pooled activations.

        Args:
            prompts: The prompts.
            start: Place of the first of them in its side.
            tokens: Takes the activations of their single tokens.

        Returns:
            The packed prompts, and `[prompts * rows_per_prompt, neurons of all sites]`, NaN where there is no sample.
            The block is overwritten by the next call.
        """
        packed = self.model.pack(prompts, start, packing_rule(self._plan.spec))
        block = self._clear(len(prompts))
        with machine.threads(self._plan.numerics.threads):
            self._run(packed, block, tokens)
        return packed, block

    def _clear(self, num_prompts: int) -> Block:
        """A block of NaN. One allocation serves all units, so a worker's memory stays flat."""
        rows = num_prompts * self._plan.rows_per_prompt
        if len(self._block) < rows:
            self._block = np.empty((rows, self._plan.width), np.float32)
        block = self._block[:rows]
        block.fill(np.nan)
        return block

    def _run(self, packed: Packed, block: Block, tokens: TokenSink | None) -> None:
        rows = np.empty(0, np.intp)

        def keep(site: int, sample: torch.Tensor) -> None:
            block[rows, self._columns[site]] = sample.float().cpu().numpy()

        clock = self.model.clock(self._plan.timesteps)
        pooling = self._plan.spec["pooling"]
        capture = Capture(self.model.modules, self._plan.sites, pooling, keep, clock, tokens)
        with capture.reading():
            for batch in packed.batches:
                rows = self._rows(batch.rows, packed.num_tokens)
                with capture.batch(batch.spans):
                    self.model.forward(batch)

    def _rows(self, prompts: tuple[int, ...], num_tokens: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Rows of the block that the samples of some prompts go to, in the order in which pooling gives them."""
        per_prompt = self._plan.rows_per_prompt
        if per_prompt == 1:
            return np.asarray(prompts, np.intp)
        return np.concatenate([row * per_prompt + np.arange(num_tokens[row]) for row in prompts])
