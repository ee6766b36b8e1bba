"""What the tests of text-to-image share: cases, and short ways to a checkpoint, a model and an image."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import PackingRule, Sampling
from pipeline.models.text_to_image import TextToImageCheckpoint, TextToImageModel
from schemas.job import TextToImage

RULE = PackingRule(template="plain", max_tokens=128, batch_tokens=128)
PROMPTS = ("a cat", "two dogs on a hill", "the sea")

RESNETS = r"unet\.down_blocks\..*\.resnets\.\d+"
MID = r"unet\.mid_block"
NORMS = r"unet\..*\.norm2"
STREAMS = (r"transformer\.transformer_blocks\.\d:1", r"transformer\.transformer_blocks\.0", r"transformer\.proj_out")

#: Of each kind a 4-D or token-shaped site, with and without guidance.
CASES = [
    pytest.param("sdxl", 0.0, (RESNETS, MID), id="unet, pixels"),
    pytest.param("sdxl", 4.0, (RESNETS, MID), id="unet, pixels, guided", marks=pytest.mark.slow),
    pytest.param("sdxl", 4.0, (NORMS,), id="unet, tokens, guided"),
    pytest.param("flux", 0.0, STREAMS, id="transformer"),
    pytest.param("flux", 4.0, STREAMS, id="transformer, guided", marks=pytest.mark.slow),
]


def checkpoint_of(folder: Path, **settings: Any) -> TextToImageCheckpoint:
    chosen = {"steps": 3, "height": 16, "width": 16} | settings
    return TextToImageCheckpoint(TextToImage(kind="text-to-image", path=str(folder), **chosen))


def model_of(folder: Path, **settings: Any) -> TextToImageModel:
    return checkpoint_of(folder, **settings).load("cpu")


def image_of(model: TextToImageModel, seed: int = 7) -> bytes:
    return model.generate("a cat", Sampling(seed=seed)).tobytes()
