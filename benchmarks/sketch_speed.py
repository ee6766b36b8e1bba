"""Claim: sketching many neurons is far faster than KLL and t-digest, and than sorting."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import datasketches
import numpy as np
import torch

from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate
from pipeline.sketch import Frame, Grid, SketchArrays, compiled, keys

NEURONS = 1024
BATCH_ROWS = 4096
BATCHES = 16

#: Values a neuron that the claim speaks of. The peers always get columns of so many.
ROWS = 1 << 20

#: How often our kernels are fed the batches, and how many of the columns the peers get.
ROUNDS = {Effort.USUAL: 1, Effort.LONG: ROWS // (BATCH_ROWS * BATCHES)}
COLUMNS = {Effort.USUAL: 8, Effort.LONG: BATCH_ROWS * BATCHES * NEURONS // ROWS}
PAIRS = {Effort.USUAL: 11, Effort.LONG: 11}

Update = Callable[[torch.Tensor, Frame, Grid, SketchArrays], None]


@final
@dataclass(frozen=True)
class Peer:
    """What our sketch is compared with.

    Args:
        name: Its name in the table.
        sketch: Reads one column of float32 values.
    """

    name: str
    sketch: Callable[[np.ndarray], object]


def _kll(column: np.ndarray) -> None:
    datasketches.kll_floats_sketch(200).update(column)


def _tdigest(column: np.ndarray) -> None:
    datasketches.tdigest_float(100).update(column)


KLL = Peer("KLL(k=200)", _kll)
TDIGEST = Peer("t-digest(compression 100)", _tdigest)
SORT = Peer("numpy.sort", np.sort)
PEERS = (KLL, TDIGEST, SORT)

#: A kernel's name, what it is compared with, and how many times as fast it is to be.
CLAIMS = (("torch", KLL, 5.0), ("torch", TDIGEST, 10.0), ("compiled", KLL, 15.0), ("compiled", SORT, 2.0))


def measure(effort: Effort) -> list[Finding]:
    """Times both kernels and the peers on one thread, in alternation, by CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(effort)
    finally:
        torch.set_num_threads(threads)


def _compare(effort: Effort) -> list[Finding]:
    values = torch.randn(BATCHES * BATCH_ROWS, NEURONS, generator=torch.Generator().manual_seed(0))
    # The same values as columns of the length that is claimed, each a row of adjacent values: as the peers like them.
    columns = values.view(-1, ROWS)[: COLUMNS[effort]].numpy()
    kernels: dict[str, Update] = {"torch": keys.update}
    if compiled.available():
        compiled.prepare()  # What it compiles for the first time on a machine does not count.
        kernels["compiled"] = compiled.update
    frame = Frame.from_pilot(values[:256])
    runs = list(
        alternate(
            PAIRS[effort],
            lambda _: [_ours(update, values, frame, ROUNDS[effort]) for update in kernels.values()],
            lambda _: [_theirs(peer, columns) for peer in PEERS],
        )
    )
    rates = {name: [ours[place] for ours, _ in runs] for place, name in enumerate(kernels)}
    rates |= {peer.name: [theirs[place] for _, theirs in runs] for place, peer in enumerate(PEERS)}
    return [_finding(*claim, rates, effort) for claim in CLAIMS if claim[0] in kernels]


def _finding(kernel: str, peer: Peer, wanted: float, rates: dict[str, list[float]], effort: Effort) -> Finding:
    ratio = Spread.of([ours / theirs for ours, theirs in zip(rates[kernel], rates[peer.name], strict=True)])
    rows = ROUNDS[effort] * BATCHES * BATCH_ROWS
    notes = (
        *(_rate(name, rates[name]) for name in (kernel, peer.name)),
        f"{kernel}: {NEURONS:,} neurons, {rows:,} values each, in batches of {BATCH_ROWS:,} rows as a model gives them",
        f"{peer.name}: {COLUMNS[effort]} columns of {ROWS:,} of the same values, adjacent in memory",
    )
    claim = f"whole law of {NEURONS:,} neurons, {kernel} kernel / {peer.name}, values a second of CPU"
    return Finding(claim, "x", ratio, Wanted("at least", wanted), notes)


def _rate(name: str, rates: Sequence[float]) -> str:
    spread = Spread.of([rate / 1e6 for rate in rates])
    return f"{name}: {spread.median:,.1f} million values a second of one core ({spread.low:,.1f} to {spread.high:,.1f})"


def _ours(update: Update, values: torch.Tensor, frame: Frame, rounds: int) -> float:
    """Returns the values a second of CPU that a kernel counts: batch by batch, into a state that starts empty."""
    begin = time.process_time()
    state = SketchArrays.empty(NEURONS, Grid())
    for _ in range(rounds):
        for batch in values.split(BATCH_ROWS):
            update(batch, frame, Grid(), state)
    return rounds * values.numel() / (time.process_time() - begin)


def _theirs(peer: Peer, columns: np.ndarray) -> float:
    """Returns the values a second of CPU that a peer reads, a column at a time."""
    begin = time.process_time()
    for column in columns:
        peer.sketch(column)
    return columns.size / (time.process_time() - begin)
