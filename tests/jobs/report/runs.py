"""Finished runs that no model ran for, and pages as their readers see them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import artifact
from pipeline.fit import fit
from pipeline.folder import RunFolder
from pipeline.frames import read_frame, write_frame
from pipeline.laws import Laws
from pipeline.ledger import Ledger
from pipeline.plan import read_plan, settle
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.storage import AbstractStorage, LocalStorage
from pipeline.store import ActivationStore, SketchStore
from pipeline.tally import Tally
from schemas.plan import LAWS, Law, LawName, Memory, ModelFacts, Numerics, Plan, SideFacts, Site, Unit
from schemas.receipt import Output, Quarantined, Receipt, packed_tokens

BLOCKS = [
    *(f"model.layers.{block}.{kind}" for block in range(3) for kind in ("input_layernorm", "post_attention_layernorm")),
    "model.norm",
]

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ {{ 7*7 }} &amp; \x07\u202egnp.exe 👩‍🔬 مرحبا \' " \ud800'

#: A site and neuron, and how far its target law lies from its source law, in standard deviations of the source.
Shifts = Mapping[tuple[str, int], float]
SHIFTS: Shifts = {(BLOCKS[2], 5): 20.0, (BLOCKS[2], 1): 14.0, (BLOCKS[2], 2): 10.0, (BLOCKS[6], 3): 6.0}

Block = NDArray[np.float32]
MakeBlock = Callable[[Plan, Unit, Shifts], Block]

TOKENS = 10  #: of each prompt

#: What a spec says to keep no activations.
SKETCHED: dict[str, Any] = {
    "law": {"kind": "sketch", "precision": 5},
    "store": {"activations": "none", "sketches": "units"},
}


def make_plan(sites: Sequence[str], prompts: tuple[int, int] = (40, 30), width: int = 8, **spec: Any) -> Plan:
    """Returns a plan as the planner makes it; `spec` replaces sections of the job."""
    job: dict[str, Any] = {
        "version": 1,
        "name": "music",
        "model": {"kind": "causal-lm", "path": "models/tiny", "dtype": "float32"},
        "source": {"path": "data.parquet", "column": "text", "where": {"topic": ["art", "no"]}, "limit": None},
        "target": {"path": "data.parquet", "column": "text", "where": {}, "limit": None},
        "hookpoints": "layernorms",
        "template": "plain",
        "pooling": "mean",
        "estimation": "simultaneous",
        "transport": {},
        "law": {"kind": "exact", "precision": 5, "misfits": "report"},
        "compute": {"workers": 2, "max_tokens": 64, "unit_size": 16, "batch_tokens": 4096},
        "store": {"activations": "all", "sketches": "units"},
        "failures": {"quarantine_at_most": 0.1},
    } | spec
    job["transport"] = {"method": "linear", "support": "observed", "select": None} | job["transport"]
    law = Law(job["law"]["kind"], job["law"]["precision"])
    return Plan(
        version=1,
        spec=job,
        model=ModelFacts("causal-lm", "f" * 64, 134_515_008, 538_060_032),
        location="models/tiny",
        numerics=Numerics("cpu", "float32", 1, "sdpa", "AVX2", {"torch": "2.13.0"}),
        sites=tuple(Site(site, "RMSNorm", width) for site in sites),
        timesteps=(),
        source=SideFacts(prompts[0], "a" * 64),
        target=SideFacts(prompts[1], "b" * 64),
        rows_per_prompt=1,
        law={"source": law, "target": law},
        memory=Memory(0, 0, 0, 0, 0, 0),
        disk=0,
        sketch_disk=0,
    )


def make_block(plan: Plan, unit: Unit, shifts: Shifts) -> Block:
    """Normal activations of many scales; on the target side shifted where `shifts` says, and a little elsewhere."""
    generator = np.random.default_rng([unit.side == "target", unit.index])
    scale = np.random.default_rng(0).uniform(0.1, 30, plan.width)
    block = generator.normal(size=(unit.num_prompts, plan.width))
    if unit.side == "target":
        block += np.random.default_rng(1).uniform(-0.3, 0.3, plan.width)
        for (site, neuron), shift in shifts.items():
            block[:, plan.columns[site].start + neuron] += shift
    return (block * scale).astype(np.float32)


def make_run(
    root: Path,
    plan: Plan,
    shifts: Shifts = SHIFTS,
    lost: Sequence[Quarantined] = (),
    make_block: MakeBlock = make_block,
) -> LocalStorage:
    """Writes a finished run; the prompts in `lost` are quarantined in the first source unit."""
    storage = LocalStorage(root)
    settle(plan, storage)
    ledger, tally = Ledger(storage, plan), Tally(plan)
    for unit in plan.units():
        block = make_block(plan, unit, shifts)
        gone = tuple(lost) if (unit.side, unit.index) == ("source", 0) else ()
        block[[one.row for one in gone]] = np.nan
        outputs = tuple(_written(storage, plan, unit, block))
        tally.add(ledger.commit(unit, make_receipt(plan, unit, outputs, gone)))
    artifact.publish(storage, fit(plan, Laws(storage, plan), tally))
    return storage


def make_receipt(plan: Plan, unit: Unit, outputs: tuple[Output, ...], gone: tuple[Quarantined, ...]) -> Receipt:
    """Returns the receipt of a unit whose files are written."""
    lost = {one.row for one in gone}
    return Receipt(
        plan=plan.fingerprint,
        model="e" * 64,
        side=unit.side,
        unit=unit.index,
        attempt=1,
        origin="",
        num_prompts=unit.num_prompts,
        tokens=packed_tokens([0 if row in lost else TOKENS for row in range(unit.num_prompts)]),
        num_truncated=2 if unit.index == 0 else 0,
        quarantined=gone,
        splits=(),
        outputs=outputs,
        seconds=1.0,
        compute_seconds=0.9,
        worker=100 + unit.index % 2,
        peak_memory=(700 + unit.index) << 20,
    )


def laws_of(storage: AbstractStorage) -> tuple[Plan, Laws]:
    """Returns the plan and the laws of a finished run."""
    plan = read_plan(storage)
    return plan, Laws(storage, plan)


def _written(storage: AbstractStorage, plan: Plan, unit: Unit, block: Block) -> Iterator[Output]:
    ledger, activations, sketches = Ledger(storage, plan), ActivationStore(storage, plan), SketchStore(storage, plan)
    if plan.kept(unit.side) != "none":
        yield ledger.publish(unit, "activations", activations.shard(unit), activations.encode(unit, block))
    kept = block[np.isfinite(block).all(axis=1)]
    for law in LAWS:
        if plan.sketches(law, unit):
            samples = _tokens(kept) if law == "tokens" else kept
            words = _sketch(storage, plan, law, samples).to_words().numpy()
            data = sketches.encode(law, unit.index, words)
            yield ledger.publish(unit, law, sketches.shard(law, unit.index), data)


def _tokens(block: Block) -> Block:
    """Tokens spread about thrice as wide as their means."""
    noise = np.random.default_rng(2).normal(size=(TOKENS, *block.shape)) * 2.8 * block.std(axis=0)
    return (block + noise).reshape(-1, block.shape[1]).astype(np.float32)


def _sketch(storage: AbstractStorage, plan: Plan, law: LawName, samples: Block) -> HistogramSketch:
    """Returns the sketch of a unit, all sites side by side, in the frame that the law's first unit chose."""
    values = torch.from_numpy(samples)
    if not storage.exists(RunFolder(storage).frame(law)):
        write_frame(storage, plan, law, Frame.from_pilot(values))
    sketch = HistogramSketch.empty(read_frame(storage, plan, law), Grid(plan.precision(law)))
    sketch.update(values)
    return sketch


class Page(HTMLParser):
    """The elements, attributes and visible text of a page; an element ends a word unless it is ``<wbr>``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.parts += [] if tag == "wbr" else [" "]

    def handle_endtag(self, tag):
        if tag == "style":
            self.parts.clear()
        self.parts.append(" ")

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.tags if found == tag]
