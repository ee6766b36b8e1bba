"""The sides of a spec: which prompts are meant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias, final

from pydantic import (
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.job.section import CountOrNone, Number, Section, TextOrNone, Texts, Whole, from_base

Scalar = StrictBool | StrictInt | Number | StrictStr
Bound = Annotated[StrictInt | Number | StrictStr | None, Field(description="a number or text")]


@final
class Range(Section):
    """Values from `min` to `max`, both included; a bound that is left out does not bind."""

    min: Bound = None
    max: Bound = None

    @model_validator(mode="after")
    def _spans(self) -> "Range":
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if not bounds:
            raise ValueError("min, max or both")
        if len({isinstance(bound, str) for bound in bounds}) > 1 or bounds[0] > bounds[-1]:  # type: ignore[operator]
            raise ValueError("bounds of one type, min not above max")
        return self


def _condition_kind(value: object) -> str:
    if isinstance(value, Mapping | Range):
        return "range"
    return "list" if isinstance(value, list | tuple) else "value"


Condition: TypeAlias = Annotated[
    Annotated[Scalar, Tag("value")]
    | Annotated[tuple[Scalar, ...], Field(min_length=1), Tag("list")]
    | Annotated[Range, Tag("range")],
    Discriminator(_condition_kind),
]
Where = Annotated[Mapping[str, Condition], Field(description="a value, a list or {min: …, max: …} for each column")]


@final
class Side(Section):
    """The prompts of one side: where they are, and which of them are meant.

    Args:
        path: A file, a folder or several files; paths or URLs.
        column: The column with the prompts; None for plain text, whose one column is ``text``.
        where: Conditions by column, all of which a row must meet.
        limit: Take this many rows from the start of the selection.
        sample: Take this many rows of the selection, drawn by a hash of `seed` and their place.
    """

    path: Texts
    column: TextOrNone = None
    where: Where = Field(default_factory=dict)
    limit: CountOrNone = None
    sample: CountOrNone = None
    seed: Whole = 0

    @field_validator("sample")
    @classmethod
    def _one_of_two(cls, sample: int | None, info: ValidationInfo) -> int | None:
        if sample is not None and info.data.get("limit") is not None:
            raise ValueError("either 'limit' or 'sample', not both")
        return sample

    def located(self, base: Path) -> "Side":
        """Returns the side with its relative paths taken from the folder `base`, and absolute."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        found = tuple(from_base(path, base) for path in paths)
        return self.model_copy(update={"path": found[0] if isinstance(self.path, str) else found})
