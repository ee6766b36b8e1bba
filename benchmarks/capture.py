"""Claim: capturing every layernorm of SmolLM2 keeps nearly all of the bare forward's throughput, store included."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final
from unittest import mock

import torch

import act.capture
from act.pooling import TokenSpans, pool
from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate
from benchmarks.runs import Setting, lay_out, scratch
from pipeline.extract import Extractor
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.models.causal_lm import CausalLMModel
from pipeline.models.interface import Packed
from pipeline.models.live_bytes import LiveBytes
from pipeline.plan import packing_rule
from pipeline.prompts import Snapshot
from pipeline.sketch import HistogramSketch
from pipeline.storage import LocalStorage
from pipeline.store import ActivationStore, SketchStore
from schemas.plan import Plan, Unit

UNIT_SIZE = 64
PAIRS = {Effort.USUAL: 8, Effort.LONG: 48}

#: The parts that another part, the hooks, contains.
WITHIN = ("pool", "sketch the tokens")

#: What a unit does besides the model's forward: the name, and the function that does it.
PARTS = {
    "tokenise and pack": (CausalLMModel, "pack"),
    "pool": (act.capture, "pool"),
    "hooks, pool and sketch the tokens": (act.capture.Capture, "_read"),
    "sketch the tokens": (HistogramSketch, "update"),
    "their words (encode)": (SketchStore, "encode"),
    "look for non-finite values": (Extractor, "judge"),
    "store (encode)": (ActivationStore, "encode"),
    "files (checksum, write, flush)": (Ledger, "publish"),
    "receipt": (Ledger, "commit"),
}


@final
@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the wall, and seconds of CPU of all threads of this process."""

    wall: float
    cpu: float


def cost_of(work: Callable[[], object]) -> Cost:
    """Runs something and returns its cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def measure(effort: Effort) -> list[Finding]:
    """Runs units with and without capture, on one thread, unit by unit in alternation."""
    pairs = PAIRS[effort]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with scratch() as folder:
            plan, run = lay_out(Setting(UNIT_SIZE * (pairs // 2 + 1), UNIT_SIZE), folder)
            return _compare(plan, run, pairs)
    finally:
        torch.set_num_threads(threads)


def _compare(plan: Plan, run: LocalStorage, pairs: int) -> list[Finding]:
    extractor = Extractor(plan, run.uri)
    extractor.ready()
    extractor.settle_frame("tokens")
    units = list(plan.units())
    packed = [_pack(extractor, plan, run, unit) for unit in units[: pairs + 1]]
    extractor.extract(units[pairs])  # The first unit of a process also loads code; it does not count.
    _forward(extractor, packed[pairs])
    parts: defaultdict[str, list[Cost]] = defaultdict(list)
    with _watched(parts):
        costs = list(
            alternate(
                pairs,
                lambda pair: cost_of(lambda: extractor.extract(units[pair])),
                lambda pair: [cost_of(lambda: _forward(extractor, packed[pair])) for _ in range(2)],
            )
        )
    return [
        *_ratios([(whole, bare) for whole, (bare, _) in costs], parts, len(plan.sites)),
        _noise([bares for _, bares in costs]),
        _pooling_bytes(packed[0], plan.sites[0].width),
    ]


def _ratios(costs: Sequence[tuple[Cost, Cost]], parts: Mapping[str, Sequence[Cost]], num_sites: int) -> list[Finding]:
    cpu = Spread.of([bare.cpu / whole.cpu for whole, bare in costs])
    wall = Spread.of([bare.wall / whole.wall for whole, bare in costs])
    whole = sum(one.cpu for one, _ in costs), sum(one.wall for one, _ in costs)
    title = f"capture at {num_sites} layernorms, mean pooling, stored / bare forward, prompts a second"
    rate = len(costs) * UNIT_SIZE / sum(bare.cpu for _, bare in costs)
    size = f"{len(costs)} pairs of units of {UNIT_SIZE} prompts; the bare forward runs {rate:.1f} prompts a CPU second"
    return [
        Finding(f"{title} of CPU", "x", cpu, Wanted("at least", 0.90), (size, *_shares(parts, *whole))),
        Finding(f"{title} on the wall", "x", wall, Wanted("at least", 0.90), ("the target is 0.95 for both",)),
    ]


def _noise(bares: Sequence[Sequence[Cost]]) -> Finding:
    """The bare forward against itself, once more on the same prompts: what the ratios mean less than."""
    again = Spread.of([first.cpu / second.cpu for first, second in bares])
    return Finding("the bare forward / itself, prompts a second of CPU: the noise of a pair", "x", again)


def _pack(extractor: Extractor, plan: Plan, run: LocalStorage, unit: Unit) -> Packed:
    texts = Snapshot.open(run, RunFolder(run).prompts(unit.side)).unit(unit.index)
    return extractor.forward.model.pack(texts, unit.start, packing_rule(plan.spec))


def _forward(extractor: Extractor, packed: Packed) -> None:
    for batch in packed.batches:
        extractor.forward.model.forward(batch)


@contextlib.contextmanager
def _watched(parts: defaultdict[str, list[Cost]]) -> Iterator[None]:
    """A context in which the cost of every call of `PARTS` is noted."""
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            noted = _noting(getattr(owner, name), parts[part])
            stack.enter_context(mock.patch.object(owner, name, noted))
        yield


def _noting(function: Callable[..., Any], costs: list[Cost]) -> Callable[..., Any]:
    def call(*args: object) -> object:
        wall, cpu = time.perf_counter(), time.process_time()
        output = function(*args)
        costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
        return output

    return call


def _shares(parts: Mapping[str, Sequence[Cost]], cpu: float, wall: float) -> Iterator[str]:
    for part, costs in parts.items():
        of_cpu, of_wall = sum(one.cpu for one in costs) / cpu, sum(one.wall for one in costs) / wall
        yield f"{part}: {of_cpu:.2%} of the CPU time, {of_wall:.2%} of the wall time, {len(costs)} calls"
    counted = sum(one.cpu for part, costs in parts.items() if part not in WITHIN for one in costs) / cpu
    yield f"all of these, counted directly: {counted:.2%} of the CPU time, which alone gives {1 - counted:.3f} x"


def _pooling_bytes(packed: Packed, width: int) -> Finding:
    """How much memory one pooling takes, over what it pools: an activation of the largest micro-batch."""
    batch = max(packed.batches, key=lambda one: one.inputs["input_ids"].numel())
    activation = torch.randn(*batch.inputs["input_ids"].shape, width)
    spans = batch.spans or TokenSpans.full(*activation.shape[:2])
    live = LiveBytes()
    with live:
        pool("mean", activation, spans)
    taken = live.peak / activation.nbytes
    note = f"{live.peak:,} bytes live at most, the sample included, for an activation of {activation.nbytes:,} bytes"
    claim = "memory that mean pooling takes / the activation it pools"
    return Finding(claim, "x", Spread(taken, taken, taken), Wanted("under", 1.0), (note,))
