"""The job spec: what a person writes, in YAML, to have a steer fitted.

`read_job` is the way in. Only this module imports pydantic and YAML; `schemas.document` holds the values with their
lines, `schemas.refusal` words what is refused. A field's `description` ends the sentence "wanted …".
"""

import os
import re
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, final

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.document import Node, SpecError, document, read_text
from schemas.refusal import refusal

__all__ = ["CausalLM", "Compute", "Job", "Linear", "Mean", "Range", "Side", "SpecError", "TextToImage", "read_job"]

MAX_SPEC_DEPTH = 16
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")  #: a model on the hub, org/name
PADDING = 16  #: micro-batches are padded to a multiple of this many tokens
_UNITS = {"B": 1} | {f"{p}{s}": b**n for s, b in (("iB", 1024), ("B", 1000)) for n, p in enumerate("KMGT", start=1)}


def _read_bytes(value: object) -> object:
    """Returns ``20GiB`` as a number of bytes; anything else goes on as it is, to be refused."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?B|B)", value) if isinstance(value, str) else None
    return int(Decimal(match[1]) * _UNITS[match[2]]) if match else value


def _condition_kind(value: object) -> str:
    if isinstance(value, Mapping | Range):
        return "range"
    return "list" if isinstance(value, list | tuple) else "value"


_SLUG = "a letter or digit, then at most 99 letters, digits, dots, dashes or underscores"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description=_SLUG)]
Version = Annotated[int, Field(strict=True, ge=1, le=1, description="1")]
Text = Annotated[str, Field(min_length=1, description="text")]
TextOrNone = Annotated[str | None, Field(min_length=1, description="text")]
_Listed = Annotated[tuple[Text, ...], Field(min_length=1)]
Texts = Annotated[Text | _Listed, Field(description="text, or a list of texts")]
Whole = Annotated[int, Field(strict=True, description="a whole number")]
Count = Annotated[int, Field(strict=True, gt=0, description="a whole number above 0")]
CountOrZero = Annotated[int, Field(strict=True, ge=0, description="a whole number, at least 0")]
CountOrNone = Annotated[int | None, Field(strict=True, gt=0, description="a whole number above 0")]
_DEVICES = r"^(auto|cpu|cuda(:[0-9]{1,4})?)$"
Device = Annotated[str, Field(pattern=_DEVICES, description="auto, cpu, cuda or cuda:N")]
Dtype = Literal["float32", "bfloat16", "float16"]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Scalar = StrictBool | StrictInt | Number | StrictStr
Bound = Annotated[StrictInt | Number | StrictStr | None, Field(description="a number or text")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Range(_Section):
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


_BYTES = "bytes: a whole number above 0, or like 20GiB (KiB MiB GiB TiB KB MB GB TB)"
Bytes = Annotated[int, BeforeValidator(_read_bytes), Field(strict=True, gt=0, description=_BYTES)]
Condition: TypeAlias = Annotated[
    Annotated[Scalar, Tag("value")]
    | Annotated[tuple[Scalar, ...], Field(min_length=1), Tag("list")]
    | Annotated[Range, Tag("range")],
    Discriminator(_condition_kind),
]
Where = Annotated[Mapping[str, Condition], Field(description="a value, a list or {min: …, max: …} for each column")]


@final
class Side(_Section):
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
        found = tuple(p if "://" in p else str(Path(base, p).absolute()) for p in paths)
        return self.model_copy(update={"path": found[0] if isinstance(self.path, str) else found})


@final
class CausalLM(_Section):
    """A language model of transformers: a folder or a hub id, or a GGUF file in one."""

    kind: Literal["causal-lm"]
    path: Text
    gguf_file: TextOrNone = None
    revision: TextOrNone = None
    dtype: Dtype = "float32"


@final
class TextToImage(_Section):
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


def _percentiles_in_order(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] < pair[1] <= 100:
        raise ValueError("0 <= p_lo < p_hi <= 100")
    return pair


Support = Annotated[
    Literal["observed", "unbounded"] | Annotated[tuple[Number, Number], AfterValidator(_percentiles_in_order)],
    Field(description="observed, unbounded or [p_lo, p_hi] with 0 <= p_lo < p_hi <= 100"),
]


@final
class Mean(_Section):
    """Mean-AcT: moves each neuron's law by the difference of means."""

    method: Literal["mean"]
    support: Support = "observed"


@final
class Linear(_Section):
    """Linear-AcT: the affine map that transports each neuron's source law best."""

    method: Literal["linear"]
    support: Support = "observed"


@final
class Compute(_Section):
    """What the job runs on, and how its prompts are cut into tasks.

    Args:
        workers: Number of actors; 0 runs in this process.
        address: ``local`` starts Ray here; anything else names a running cluster.
        batch_tokens: Tokens of a micro-batch, padding included.
        threads: Threads of a worker.
    """

    workers: CountOrZero = 2
    address: Text = "local"
    device: Device = "auto"
    max_tokens: Count = 128
    unit_size: Count = 512
    batch_tokens: Annotated[Count, Field(validate_default=True)] = 4096
    threads: Count = 1

    @field_validator("batch_tokens")
    @classmethod
    def _holds_one_prompt(cls, batch_tokens: int, info: ValidationInfo) -> int:
        padded = -(-info.data.get("max_tokens", 1) // PADDING) * PADDING
        if batch_tokens < padded:
            raise ValueError(f"at least {padded}, which is max_tokens rounded up to a multiple of {PADDING}")
        return batch_tokens


@final
class Store(_Section):
    """What is kept of the activations, and how many bytes that may take."""

    activations: Literal["all"] = "all"
    quota: Bytes = 20 << 30


@final
class Failures(_Section):
    """What share of the prompts may be quarantined before the job stops."""

    quarantine_at_most: Annotated[Number, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.001


@final
class Job(_Section):
    """A whole job: a model, two sides, where to look, and how to fit."""

    version: Version
    name: Name
    model: Annotated[CausalLM | TextToImage, Field(discriminator="kind")]
    source: Side
    target: Side
    hookpoints: Texts
    template: Literal["plain", "chat"] = "plain"
    pooling: Literal["mean", "max", "min", "median", "last", "all"] = "mean"
    estimation: Literal["simultaneous"] = "simultaneous"
    transport: Annotated[Mean | Linear, Field(discriminator="method")] = Linear(method="linear")
    compute: Compute = Compute()
    store: Store = Store()
    failures: Failures = Failures()

    @field_validator("pooling")
    @classmethod
    def _pools_sites_of_many_sizes(cls, pooling: str, info: ValidationInfo) -> str:
        if pooling == "all" and isinstance(info.data.get("model"), TextToImage):
            raise ValueError("another pooling for a text-to-image model, whose sites differ in their number of tokens")
        return pooling

    def located(self, base: Path) -> "Job":
        """Returns the job with absolute paths; a hub id that is no folder under `base` stays."""
        folder = Path(base, os.path.expanduser(self.model.path)).absolute()
        stays = not folder.is_dir() and HUB_ID.fullmatch(self.model.path)
        model = self.model.model_copy(update={"path": self.model.path if stays else str(folder)})
        sides = {"source": self.source.located(base), "target": self.target.located(base)}
        return self.model_copy(update={"model": model, **sides})


def read_job(path: Path) -> Job:
    """Returns the job that a YAML file describes.

    Raises:
        SpecError: The file is no spec; the error names the line, the key, and what was wanted there.
    """
    spec = document(str(path), _compose(str(path), read_text(path)))
    try:
        return Job.model_validate(spec.values)
    except ValidationError as exc:
        raise refusal(spec, exc.errors(), Job) from exc


def _compose(file: str, text: str) -> Node | None:
    """Returns the root node of a document that is plain: no aliases, no anchors, no tags, no deep nesting."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            exotic = isinstance(event, yaml.NodeEvent) and (event.anchor or getattr(event, "tag", None))
            if exotic or depth > MAX_SPEC_DEPTH:
                problem = "an alias, an anchor or a tag" if exotic else f"more than {MAX_SPEC_DEPTH} levels"
                line = event.start_mark.line + 1 if event.start_mark else None
                raise SpecError(file, line, None, f"found {problem}; wanted plain keys and values")
        return typing.cast("Node | None", yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise SpecError(file, line, None, f"it is not valid YAML: {exc.problem}; wanted 'key: value' lines") from exc
    except yaml.YAMLError as exc:
        raise SpecError(file, None, None, f"it is not valid YAML: {str(exc).splitlines()[0]}") from exc
