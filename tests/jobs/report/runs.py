"""Finished runs that no model ran for, and pages as their readers see them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.fit import fit
from pipeline.folder import RunFolder
from pipeline.frames import read_frame, write_frame
from pipeline.laws import Laws
from pipeline.ledger import Ledger, measure
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.store import ActivationStore, SketchStore
from schemas import files, record
from schemas.plan import LAWS, Law, LawName, Memory, ModelFacts, Numerics, Plan, SideFacts, Site, Unit
from schemas.receipt import Output, OutputKind, Quarantined, Receipt

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
SKETCHED: dict[str, Any] = {"law": {"kind": "sketch", "precision": 5}, "store": {"activations": "none"}}


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
        "law": {"kind": "exact", "precision": 5},
        "compute": {"workers": 2, "max_tokens": 64, "unit_size": 16, "batch_tokens": 4096},
        "store": {"activations": "all"},
    } | spec
    job["transport"] = {"method": "linear", "support": "observed", "select": None} | job["transport"]
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
        law=Law(job["law"]["kind"], job["law"]["precision"]),
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
) -> RunFolder:
    """Writes a finished run; the prompts in `lost` are quarantined in the first source unit."""
    folder = RunFolder(root)
    folder.make()
    files.publish(folder.plan, record.dump(plan))
    ledger = Ledger(folder, plan)
    if plan.keeps_activations:
        ActivationStore(folder.activations, plan).create()
    SketchStore(folder.sketches, plan).create()
    receipts = []
    for unit in plan.units():
        block = make_block(plan, unit, shifts)
        gone = tuple(lost) if (unit.side, unit.index) == ("source", 0) else ()
        block[[one.row for one in gone]] = np.nan
        outputs = tuple(_written(folder, plan, unit, block))
        receipts.append(ledger.commit(unit, make_receipt(plan, unit, outputs, gone)))
    fit(plan, Laws(plan, root, receipts), receipts).save(folder.steer)
    return folder


def make_receipt(plan: Plan, unit: Unit, outputs: tuple[Output, ...], gone: tuple[Quarantined, ...]) -> Receipt:
    """Returns the receipt of a unit whose files are written."""
    lost = {one.row for one in gone}
    return Receipt(
        plan=plan.fingerprint,
        model="e" * 64,
        side=unit.side,
        unit=unit.index,
        num_prompts=unit.num_prompts,
        num_tokens=tuple(0 if row in lost else TOKENS for row in range(unit.num_prompts)),
        num_truncated=2 if unit.index == 0 else 0,
        quarantined=gone,
        outputs=outputs,
        seconds=1.0,
        compute_seconds=0.9,
        worker=100 + unit.index % 2,
        peak_memory=(700 + unit.index) << 20,
    )


def laws_of(folder: RunFolder) -> tuple[Plan, Laws]:
    """Returns the plan and the laws of a finished run."""
    plan = record.load(Plan, folder.plan.read_bytes())
    return plan, Laws(plan, folder.root, Ledger(folder, plan).split(plan.units())[0])


def _written(folder: RunFolder, plan: Plan, unit: Unit, block: Block) -> Iterator[Output]:
    def output(kind: OutputKind, path: Path) -> Output:
        return Output(kind, str(path.relative_to(folder.root)), *measure(path))

    if plan.keeps_activations:
        yield output("activations", ActivationStore(folder.activations, plan).write(unit, block))
    kept = block[np.isfinite(block).all(axis=1)]
    for law in LAWS:
        if plan.sketches(law, unit):
            samples = _tokens(kept) if law == "tokens" else kept
            words = _sketch(folder, plan, law, samples).to_words().numpy()
            yield output(law, SketchStore(folder.sketches, plan).write(law, unit, words))


def _tokens(block: Block) -> Block:
    """Tokens spread about thrice as wide as their means."""
    noise = np.random.default_rng(2).normal(size=(TOKENS, *block.shape)) * 2.8 * block.std(axis=0)
    return (block + noise).reshape(-1, block.shape[1]).astype(np.float32)


def _sketch(folder: RunFolder, plan: Plan, law: LawName, samples: Block) -> HistogramSketch:
    """Returns the sketch of a unit, all sites side by side, in the frame that the law's first unit chose."""
    values, path = torch.from_numpy(samples), folder.frame(law)
    if not path.exists():
        write_frame(path, Frame.from_pilot(values))
    sketch = HistogramSketch.empty(read_frame(path), Grid(plan.precision(law)))
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
