"""Extraction: one unit of prompts through the model, a file each of its activations and sketches, the receipt last."""

import os
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from pipeline import machine
from pipeline.folder import RunFolder
from pipeline.forward import Forward
from pipeline.frames import choose_frame, write_frame
from pipeline.ledger import Ledger, measure
from pipeline.models import Packed
from pipeline.prompts import Snapshot
from pipeline.sketch import HistogramSketch
from pipeline.sketching import Sketcher, counting
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.activations import Block, kept_rows
from schemas.plan import LAWS, SIDES, LawName, Plan, SideName, Unit
from schemas.receipt import Output, OutputKind, Quarantined, Receipt

EMPTY = "empty: no tokens"


@final
class Extractor:
    """Runs units of prompts through the model, and stores their pooled activations and sketches.

    A plain class: only `pipeline.cluster` makes it an actor, so tests call it in process. The model is loaded by
    `ready`, or by the first unit.

    Args:
        plan: The plan.
        root: The run folder.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan, self._folder = plan, RunFolder(root)
        self._forward = Forward(plan)
        self._sketcher = Sketcher(plan, self._folder)
        self._activations = ActivationStore(self._folder.activations, plan)
        self._sketches = SketchStore(self._folder.sketches, plan)
        self._ledger = Ledger(self._folder, plan)

    def ready(self) -> int:
        """Loads the model, and returns the process id of the worker.

        Raises:
            OtherNumericsError: This machine computes other bits than the plan says.
            ModelLoadError: The model cannot be loaded.
        """
        self._forward.fingerprint  # noqa: B018 - loads the model
        return os.getpid()

    def settle_frame(self, law: LawName) -> None:
        """Chooses and writes the frame of a law, unless there is one. It depends on the plan alone."""
        path = self._folder.frame(law)
        if not path.exists():
            prompts = self._prompts["target" if law == "target" else "source"].unit(0)
            write_frame(path, choose_frame(self._plan, law, self._forward, prompts))

    def extract(self, unit: Unit) -> Receipt:
        """Stores one unit and commits its receipt.

        Safe to retry on any worker: the receipt is written last, under the unit's name, and a unit that already has
        one is not run again.
        """
        return self._ledger.find(unit) or self._extract(unit)

    def _extract(self, unit: Unit) -> Receipt:
        begin = time.perf_counter()
        prompts = self._prompts[unit.side].unit(unit.index)
        tokens = self._sketcher.empty("tokens", self._forward.device) if self._plan.sketches("tokens", unit) else None
        start = time.perf_counter()
        packed, block = self._forward.run(prompts, unit.start, None if tokens is None else counting(tokens))
        compute = time.perf_counter() - start
        num_tokens, quarantined = self._judge(unit, packed, block)
        outputs = tuple(self._write(unit, block, kept_rows(num_tokens, self._plan.rows_per_prompt), tokens))
        receipt = Receipt(
            plan=self._plan.fingerprint,
            model=self._forward.fingerprint,
            side=unit.side,
            unit=unit.index,
            num_prompts=unit.num_prompts,
            num_tokens=num_tokens,
            num_truncated=packed.num_truncated,
            quarantined=quarantined,
            outputs=outputs,
            seconds=time.perf_counter() - begin,
            compute_seconds=compute,
            worker=os.getpid(),
            peak_memory=machine.peak_memory(),
        )
        return self._ledger.commit(unit, receipt)

    def _write(
        self, unit: Unit, block: Block, kept: NDArray[np.bool_], tokens: list[HistogramSketch] | None
    ) -> Iterator[Output]:
        """Writes what a unit leaves, and yields what the receipt says of each file."""
        if self._plan.keeps_activations:
            yield self._output("activations", self._activations.write(unit, block))
        for law in LAWS:
            if self._plan.sketches(law, unit):
                sketches = tokens if law == "tokens" else self._sketcher.pooled(law, block, kept)
                assert sketches is not None, "the tokens were sketched"
                yield self._output(law, self._sketches.write(law, unit, self._sketcher.words(law, sketches)))

    def _output(self, kind: OutputKind, path: Path) -> Output:
        return Output(kind, path.relative_to(self._folder.root).as_posix(), *measure(path))

    @cached_property
    def _prompts(self) -> dict[SideName, Snapshot]:
        return {name: Snapshot.open(self._folder.prompts(name)) for name in SIDES}

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
