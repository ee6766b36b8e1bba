"""Runs made by hand: a plan of two narrow sites, and units whose samples are drawn where a model would compute them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.frames import write_frame
from pipeline.ledger import Ledger
from pipeline.plan import settle
from pipeline.sketch import Frame
from pipeline.sketching import Sketcher
from pipeline.storage import LocalStorage
from pipeline.store import ActivationStore, SketchStore
from pipeline.store.activations import kept_rows
from schemas.plan import LAWS, SIDES, Law, LawName, Memory, ModelFacts, Numerics, Plan, SideFacts, Site, Unit, side_of
from schemas.receipt import Output, Quarantined, Receipt, packed_tokens

#: The second is wider than a chunk of the stores.
SITES = (Site("a", "LayerNorm", 3), Site("b:1", "Attention", 70))

SKETCH, EXACT = Law("sketch", 5), Law("exact", 5)


def made_plan(num_source: int = 22, num_target: int = 12, law: Law = SKETCH, **changes: dict[str, Any]) -> Plan:
    """The plan of a made run in units of four prompts; `changes` extend sections of its spec."""
    spec: dict[str, Any] = {
        "name": "made",
        "model": {"kind": "causal-lm", "path": "none"},
        "template": "plain",
        "pooling": "mean",
        "estimation": "simultaneous",
        "transport": {"method": "linear", "support": "observed"},
        "compute": {"workers": 0, "reducers": 1, "max_tokens": 32, "unit_size": 4, "batch_tokens": 128},
        "store": {"activations": "all", "sketches": "units", "quota": 1 << 30, "laws": None},
        "failures": {"quarantine_at_most": 0.1},
        "extends": None,
    }
    return Plan(
        version=1,
        spec=spec | {name: spec[name] | change for name, change in changes.items()},
        model=ModelFacts("causal-lm", "f" * 64, 100, 400),
        location="none",
        numerics=Numerics("cpu", "float32", 1, "sdpa", "AVX2", {"torch": "2.13.0"}),
        sites=SITES,
        timesteps=(),
        source=SideFacts(num_source, "s" * 64),
        target=SideFacts(num_target, "t" * 64),
        rows_per_prompt=1,
        law={"source": law, "target": law},
        memory=Memory(400, 50, 32, 64, 96, 1 << 30),
        disk=0,
        sketch_disk=0,
    )


def drawn(plan: Plan, unit: Unit) -> NDArray[np.float32]:
    """The pooled samples of a unit, `[prompts, neurons of all sites]`: each prompt's are the same in any unit."""
    rows = [
        np.random.default_rng([len(unit.side), row]).normal(size=plan.width) for row in range(unit.start, unit.stop)
    ]
    return np.array(rows, np.float32)


class MadeRun:
    """A run whose units are done by `do`.

    Args:
        root: Its folder.
        plan: Its plan.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.storage, self.plan = LocalStorage(root), plan
        self.ledger = Ledger(self.storage, plan)
        self.activations, self.sketches = ActivationStore(self.storage, plan), SketchStore(self.storage, plan)
        self._sketcher = Sketcher(plan, self.storage)
        settle(plan, self.storage)
        for law in LAWS:
            pilot = torch.from_numpy(drawn(plan, plan.unit(side_of(law), 0)))
            write_frame(self.storage, plan, law, Frame.from_pilot(pilot))

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.storage.uri

    def do(self, unit: Unit, lost: tuple[int, ...] = (), **changes: Any) -> Receipt:
        """Writes what a unit leaves, and its receipt; `lost` are rows of the unit whose prompt is quarantined."""
        block, num_tokens = drawn(self.plan, unit), np.full(unit.num_prompts, 5)
        num_tokens[list(lost)], block[list(lost)] = 0, np.nan
        receipt = Receipt(
            plan=self.plan.fingerprint,
            model="m" * 64,
            side=unit.side,
            unit=unit.index,
            attempt=1,
            origin="",
            num_prompts=unit.num_prompts,
            tokens=packed_tokens(num_tokens),
            num_truncated=0,
            quarantined=tuple(Quarantined(unit.start + row, "empty") for row in lost),
            splits=(),
            outputs=self.outputs(unit, block, kept_rows(num_tokens, 1)),
            seconds=0.5,
            compute_seconds=0.25,
            worker=1,
            peak_memory=1,
        )
        return self.ledger.commit(unit, dataclasses.replace(receipt, **changes))

    def outputs(self, unit: Unit, block: NDArray[np.float32], rows: NDArray[np.bool_]) -> tuple[Output, ...]:
        """Writes the files of a unit."""
        written = []
        if self.plan.kept(unit.side) != "none":
            data = self.activations.encode(unit, block)
            written.append(self.ledger.publish(unit, "activations", self.activations.shard(unit), data))
        for law in LAWS:
            if self.plan.sketches(law, unit):
                data = self._encoded(law, unit, block, rows)
                written.append(self.ledger.publish(unit, law, self.sketches.shard(law, unit.index), data))
        return tuple(written)

    def _encoded(self, law: LawName, unit: Unit, block: NDArray[np.float32], rows: NDArray[np.bool_]) -> bytes:
        words = self._sketcher.words(law, self._sketcher.pooled(law, block, rows))
        return self.sketches.encode(law, unit.index, words)

    def do_all(self) -> list[Receipt]:
        """Does every unit."""
        return [self.do(unit) for unit in self.plan.units()]

    def samples(self, side: str) -> NDArray[np.float32]:
        """All samples of a side."""
        assert side in SIDES
        return np.concatenate([drawn(self.plan, unit) for unit in self.plan.units() if unit.side == side])
