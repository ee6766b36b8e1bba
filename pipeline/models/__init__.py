"""Models: one interface, a file per kind. The one package that loads models.

To add a kind: a spec class in `schemas.job`, a file here with a checkpoint and a model, a line in `open_checkpoint`.
"""

from pathlib import Path

from pipeline.models.interface import (
    AbstractCheckpoint,
    AbstractModel,
    MicroBatch,
    Packed,
    PackingRule,
    Sampling,
    Survey,
    Waiting,
)
from schemas.job import CausalLM, TextToImage

__all__ = [
    "AbstractCheckpoint",
    "AbstractModel",
    "MicroBatch",
    "Packed",
    "PackingRule",
    "Sampling",
    "Survey",
    "Waiting",
    "open_checkpoint",
    "open_located",
]


def open_checkpoint(spec: CausalLM | TextToImage, cache: Path) -> AbstractCheckpoint:
    """Returns the model that a spec names, as it lies on disk.

    Args:
        spec: The model section of a job, its path absolute or a hub id.
        cache: Folder for converted checkpoints.

    Raises:
        ModelNotFoundError: There is no such folder, hub id, or file in it.
    """
    match spec:
        case CausalLM():
            from pipeline.models.causal_lm import CausalLMCheckpoint  # transformers is heavy

            return CausalLMCheckpoint(spec, cache)
        case TextToImage():
            from pipeline.models.text_to_image import TextToImageCheckpoint  # so is diffusers

            return TextToImageCheckpoint(spec)


def open_located(spec: CausalLM | TextToImage, location: Path) -> AbstractCheckpoint:
    """Returns the model of a plan, from the folder where the plan found it or put it."""
    changes: dict[str, str | None] = {"path": str(location), "revision": None}
    if isinstance(spec, CausalLM):
        changes["gguf_file"] = None
    return open_checkpoint(spec.model_copy(update=changes), location.parent)
