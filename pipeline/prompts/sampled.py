"""Which prompts keep their activations when a store keeps a sample of them for audits."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.prompts.draw import lots
from schemas.plan import SideName

#: One prompt of so many is in the sample, on average.
ONE_IN = 100


def sampled(side: SideName, start: int, stop: int) -> NDArray[np.bool_]:
    """Returns which of the prompts from `start` to before `stop` are in the sample, `[prompts]`.

    A prompt's place in the canonical order of its side decides, by a hash, and nothing else: not how prompts are cut
    into units, nor what a later run appends.
    """
    # Far from the small seeds that people write: a side that is itself drawn would be sampled by the same lots.
    seed = int.from_bytes(hashlib.sha256(f"actmap.sampled.{side}".encode()).digest()[:8], "little")
    return lots(np.arange(start, stop), seed) < np.uint64((1 << 64) // ONE_IN)
