"""Where activations are kept. The one folder that imports Zarr."""

from pipeline.store.activations import ActivationStore

__all__ = ["ActivationStore"]
