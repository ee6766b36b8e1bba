"""The models that a spec may name, by kind."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, final

from pydantic import Field

from schemas.job.section import Count, CountOrNone, Dtype, Number, Section, Text, TextOrNone, Whole

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")  #: a model on the hub, org/name


@final
class CausalLM(Section):
    """A language model of transformers: a folder or a hub id, or a GGUF file in one."""

    kind: Literal["causal-lm"]
    path: Text
    gguf_file: TextOrNone = None
    revision: TextOrNone = None
    dtype: Dtype = "float32"


@final
class TextToImage(Section):
    """A text-to-image pipeline of diffusers, and how it draws from a prompt and `seed`."""

    kind: Literal["text-to-image"]
    path: Text
    revision: TextOrNone = None
    dtype: Dtype = "float32"
    steps: Count = 4
    guidance: Annotated[Number, Field(ge=0, description="a number, at least 0")] = 0.0
    height: CountOrNone = None
    width: CountOrNone = None
    seed: Annotated[Whole, Field(ge=0, le=2**62, description="a whole number from 0 to 2**62")] = 0


def located(path: str, base: Path) -> str:
    """Returns a model's path, absolute from the folder `base`; a hub id that is no folder there stays."""
    folder = Path(base, os.path.expanduser(path)).absolute()
    return path if not folder.is_dir() and HUB_ID.fullmatch(path) else str(folder)
