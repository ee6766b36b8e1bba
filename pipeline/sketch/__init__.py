"""Laws of neurons as integers: sketches that merge to the same bits in any order."""

from pipeline.sketch.arrays import SketchArrays
from pipeline.sketch.exact import ExactSketch
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid
from pipeline.sketch.health import Health
from pipeline.sketch.histogram import HistogramSketch
from pipeline.sketch.interface import AbstractSketch, NonFinite
from pipeline.sketch.merging import merge_tree
from pipeline.sketch.words import EXTRA_WORDS

__all__ = [
    "EXTRA_WORDS",
    "AbstractSketch",
    "ExactSketch",
    "Frame",
    "Grid",
    "Health",
    "HistogramSketch",
    "NonFinite",
    "SketchArrays",
    "merge_tree",
]
