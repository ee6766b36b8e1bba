"""Generating with a steer at several strengths, side by side."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import act
from act.errors import StrengthError
from act.steer import Steer
from jobs.errors import EmptyPromptError, NoSteerError
from pipeline.errors import ModelNotFoundError
from pipeline.models import AbstractModel, Sampling, open_checkpoint
from schemas.job import CausalLM, TextToImage

Dtype = Literal["float32", "bfloat16", "float16"]


@final
@dataclass(frozen=True)
class Generated:
    """What came of one prompt at one strength.

    Args:
        prompt: The prompt.
        strength: The strength.
        output: The continuation, or an image as `PIL.Image.Image`.
    """

    prompt: str
    strength: float
    output: Any


def check(prompts: Sequence[str], strengths: Sequence[float], steer: Path | None) -> None:
    """Checks what can be known to be wrong before anything is loaded.

    Raises:
        EmptyPromptError: There is nothing to go on from.
        StrengthError: A strength is no finite number.
        NoSteerError: A strength is meant for a steer that is not named.
    """
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise EmptyPromptError(number)
    for strength in strengths:
        if not math.isfinite(strength):
            raise StrengthError(strength)
        if strength != 0 and steer is None:
            raise NoSteerError(strength)


def load_model(path: str, dtype: Dtype, device: str, cache: Path) -> AbstractModel:
    """Returns the model at a path: a folder, a hub id, a GGUF file, or the folder of a diffusers pipeline.

    Raises:
        ModelNotFoundError: There is none.
        ModelLoadError: It cannot be loaded.
    """
    if not path:
        raise ModelNotFoundError("''", "the path is empty")
    place = Path(path).expanduser()
    if place.exists():  # else it may be a hub id, which a relative folder looks like
        place = place.absolute()
        path = str(place)
    spec: CausalLM | TextToImage
    if (place / "model_index.json").is_file():
        spec = TextToImage(kind="text-to-image", path=path, dtype=dtype)
    elif place.suffix == ".gguf":
        spec = CausalLM(kind="causal-lm", path=str(place.parent), gguf_file=place.name, dtype=dtype)
    else:
        spec = CausalLM(kind="causal-lm", path=path, dtype=dtype)
    return open_checkpoint(spec, cache).load(device)


def generate(
    model: AbstractModel,
    steer: Steer | None,
    prompts: Sequence[str],
    strengths: Sequence[float],
    sampling: Sampling,
    weights: Literal["match", "any"] = "match",
) -> Iterator[Generated]:
    """Yields what comes of each prompt at each strength, prompt by prompt.

    Raises:
        OtherModelError: The steer does not belong to the model.
        StrengthError: A strength is no finite number.
    """
    for prompt in prompts:
        for strength in strengths:
            steered = nullcontext() if steer is None else act.apply(steer, model.root, strength, weights=weights)
            with steered:
                yield Generated(prompt, strength, model.generate(prompt, sampling))
