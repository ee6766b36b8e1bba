"""Frames: where the samples of each law are counted. Chosen from a pilot before the rest, and written once."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from pipeline.forward import BatchSink, Forward, TokenSink
from pipeline.ledger import REPAIR
from pipeline.models import Packed
from pipeline.sketch import Frame
from pipeline.storage import AbstractStorage
from pipeline.store.activations import Block
from schemas import record
from schemas.framing import FrameRecord
from schemas.plan import LawName, Plan, side_of
from schemas.receipt import Quarantined
from schemas.treatment import Treatment

#: The first prompts of a side, of one unit at most: their samples give the frame of its law.
PILOT_PROMPTS = 256

#: The first prompts of the source: their tokens, the first so many of each site, give the frame of the law of tokens.
PILOT_TOKENS = 16
MOST_TOKENS = 1024

_PLAIN = Treatment()


def choose_frame(
    plan: Plan,
    law: LawName,
    forward: Forward,
    prompts: Sequence[str | None],
    treatment: Treatment = _PLAIN,
    on_batch: BatchSink | None = None,
) -> Frame:
    """Returns the frame of a law. What is not finite does not count.

    Args:
        plan: The plan.
        law: Whose frame.
        forward: Runs the pilot.
        prompts: The first prompts of the law's side.
        treatment: Which of them are masked, and which micro-batches run in pieces.
        on_batch: Called as `Forward.run` says.

    Raises:
        BatchMemoryError: A micro-batch does not fit in memory.
    """
    if law != "tokens":
        count = PILOT_PROMPTS
        _, block = _run(plan, forward, prompts[:count], None, _of(treatment, count), on_batch)
        return joined(Frame.from_pilot(torch.from_numpy(block[:, columns])) for columns in plan.columns.values())
    tokens: list[torch.Tensor] = []

    def start() -> TokenSink:
        tokens[:] = [torch.empty(0, site.width) for site in plan.sites]
        return keep

    def keep(site: int, values: torch.Tensor) -> None:
        room = MOST_TOKENS - len(tokens[site])
        tokens[site] = torch.cat([tokens[site], values[:room].float().cpu()])

    _run(plan, forward, prompts[:PILOT_TOKENS], start, _of(treatment, PILOT_TOKENS), on_batch)
    return joined(map(Frame.from_pilot, tokens))


def _run(
    plan: Plan,
    forward: Forward,
    prompts: Sequence[str | None],
    start: Callable[[], TokenSink] | None,
    treatment: Treatment,
    on_batch: BatchSink | None,
) -> tuple[Packed, Block]:
    """Runs a pilot; again without the prompts that have an activation which is not finite, for they count nowhere.

    Whether these were known to be quarantined before must not change a bit: a replay knows, the first run did not.
    """
    while True:
        packed, block = forward.run(prompts, 0, start() if start else None, treatment, on_batch)
        known = {one.row for one in treatment.masked}
        rows = block.reshape(len(prompts), plan.rows_per_prompt, -1)
        odd = [
            row
            for row, count in enumerate(packed.num_tokens)
            if row not in known and not np.isfinite(rows[row, : min(count, plan.rows_per_prompt)]).all()
        ]
        if not odd:
            return packed, block
        lost = tuple(Quarantined(row, "not finite") for row in odd)
        treatment = dataclasses.replace(treatment, masked=(*treatment.masked, *lost))


def _of(treatment: Treatment, count: int) -> Treatment:
    """Returns a treatment of the first prompts alone, of a side whose first unit it is for."""
    return dataclasses.replace(treatment, masked=tuple(one for one in treatment.masked if one.row < count))


def write_frame(storage: AbstractStorage, plan: Plan, law: LawName, frame: Frame) -> None:
    """Writes the frame of a law; one that exists is left as it is.

    Raises:
        StoreError: The storage refuses.
    """
    written = FrameRecord(plan.unit_key(side_of(law)), law, save(frame.to_tensors()))
    storage.create(RunFolder(storage).frame(law), record.seal(written))


def read_frame(storage: AbstractStorage, plan: Plan, law: LawName) -> Frame:
    """Returns the frame of a law.

    Raises:
        DamagedRunError: There is none, or a byte of it is not as it was written.
    """
    key = RunFolder(storage).frame(law)
    place = storage.place(key)
    try:
        written = record.unseal(FrameRecord, storage.read(key))
        frame = Frame.from_tensors(load(written.tensors))
    except (FileNotFoundError, record.RecordError, SafetensorError, KeyError, ValueError) as exc:
        raise DamagedRunError(place, f"it is no frame ({exc})", REPAIR) from exc
    if (written.key, written.law, frame.num_neurons) != (plan.unit_key(side_of(law)), law, plan.width):
        raise DamagedRunError(place, f"it is not the frame of {law} of this plan", REPAIR)
    return frame


def joined(frames: Iterable[Frame]) -> Frame:
    """Returns one frame for the neurons of all these frames, in order."""
    parts = [frame.to_tensors() for frame in frames]
    return Frame.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
