"""Where activations and sketches are kept. The one folder that imports Zarr."""

from pipeline.store.activations import ActivationStore
from pipeline.store.sketches import SketchStore

__all__ = ["ActivationStore", "SketchStore"]
