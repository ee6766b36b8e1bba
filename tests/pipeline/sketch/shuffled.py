"""Merges the sketches of a folder in an order drawn from a seed, as a program: `shuffled FOLDER SEED`."""

import hashlib
import random
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.sketch import AbstractSketch, HistogramSketch, merge_tree


def merged(folder: Path, seed: int) -> AbstractSketch:
    """The merge of all sketches in a folder, as a random tree."""
    rng = random.Random(seed)
    words = [torch.from_numpy(np.load(path)) for path in sorted(folder.glob("*.npy"))]
    parts: list[AbstractSketch] = [HistogramSketch.from_words(part) for part in words]
    rng.shuffle(parts)
    while len(parts) > 3:
        parts.append(parts.pop(rng.randrange(len(parts))).merge(parts.pop(rng.randrange(len(parts)))))
    return merge_tree(parts)


def digest(sketch: AbstractSketch) -> str:
    """A hash of all bits of a sketch."""
    return hashlib.sha256(sketch.to_words().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    sys.stdout.write(digest(merged(Path(sys.argv[1]), int(sys.argv[2]))))
