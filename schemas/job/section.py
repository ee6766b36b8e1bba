"""What the sections of a spec are made of: their base, and the kinds of values that several of them take."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, description="text")]
TextOrNone = Annotated[str | None, Field(min_length=1, description="text")]
_Listed = Annotated[tuple[Text, ...], Field(min_length=1)]
Texts = Annotated[Text | _Listed, Field(description="text, or a list of texts")]
Whole = Annotated[int, Field(strict=True, description="a whole number")]
Count = Annotated[int, Field(strict=True, gt=0, description="a whole number above 0")]
CountOrZero = Annotated[int, Field(strict=True, ge=0, description="a whole number, at least 0")]
CountOrNone = Annotated[int | None, Field(strict=True, gt=0, description="a whole number above 0")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A section of the spec: its keys and no others, fixed once read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def from_base(path: str, base: Path) -> str:
    """Returns a path, absolute from the folder `base`; a URL stays."""
    return path if "://" in path else str(Path(base, path).absolute())
