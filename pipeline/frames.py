"""Frames: where the samples of each law are counted. Chosen from a pilot before the rest, and written once."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.errors import DamagedRunError, StoreError
from pipeline.forward import Forward
from pipeline.sketch import Frame
from schemas import files
from schemas.plan import LawName, Plan

#: The first prompts of a side, of one unit at most: their samples give the frame of its law.
PILOT_PROMPTS = 256

#: The first prompts of the source: their tokens, the first so many of each site, give the frame of the law of tokens.
PILOT_TOKENS = 16
MOST_TOKENS = 1024


def choose_frame(plan: Plan, law: LawName, forward: Forward, prompts: Sequence[str | None]) -> Frame:
    """Returns the frame of a law. What is not finite does not count.

    Args:
        plan: The plan.
        law: Whose frame.
        forward: Runs the pilot.
        prompts: The first prompts of the law's side.
    """
    if law != "tokens":
        _, block = forward.run(prompts[:PILOT_PROMPTS], 0)
        return _joined(Frame.from_pilot(torch.from_numpy(block[:, columns])) for columns in plan.columns.values())
    tokens = [torch.empty(0, site.width) for site in plan.sites]

    def keep(site: int, values: torch.Tensor) -> None:
        room = MOST_TOKENS - len(tokens[site])
        tokens[site] = torch.cat([tokens[site], values[:room].float().cpu()])

    forward.run(prompts[:PILOT_TOKENS], 0, keep)
    return _joined(map(Frame.from_pilot, tokens))


def write_frame(path: Path, frame: Frame) -> None:
    """Writes a frame; one that exists is left as it is.

    Raises:
        StoreError: The disk refuses.
    """
    try:
        files.publish_first(path, save(frame.to_tensors()))
    except OSError as exc:
        raise StoreError(str(path), exc.strerror or str(exc)) from exc


def read_frame(path: Path) -> Frame:
    """Returns a frame.

    Raises:
        DamagedRunError: There is none, or the file is damaged.
    """
    try:
        return Frame.from_tensors(load(path.read_bytes()))
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        redo = f"delete {path} and run the same command again"
        raise DamagedRunError(str(path), f"it is no frame ({exc})", redo) from exc


def _joined(frames: Iterable[Frame]) -> Frame:
    """Returns one frame for the neurons of all these frames, in order."""
    parts = [frame.to_tensors() for frame in frames]
    return Frame.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
