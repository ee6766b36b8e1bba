"""The frame of a law as a run keeps it."""

from dataclasses import dataclass
from typing import final

from schemas.plan import LawName


@final
@dataclass(frozen=True)
class FrameRecord:
    """The frame in which the samples of a law are counted.

    Args:
        key: What names how the units of its side are computed, see `Plan.unit_key`.
        law: Whose frame.
        tensors: The frame's tensors, as a safetensors file.
    """

    key: str
    law: LawName
    tensors: bytes
