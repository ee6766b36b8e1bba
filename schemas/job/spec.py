"""The spec as a whole: its sections, and what one of them rules out in another."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, final

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from schemas.job.model import CausalLM, TextToImage, located
from schemas.job.prompts import Side
from schemas.job.section import Count, CountOrZero, Number, Section, Text, TextOrNone, Texts, from_base
from schemas.job.transport import DetZero, Transport
from schemas.refusal import ConflictError

PADDING = 16  #: micro-batches are padded to a multiple of this many tokens
PRECISION = 5  #: of a sketch, unless the spec says otherwise
_UNITS = {"B": 1} | {f"{p}{s}": b**n for s, b in (("iB", 1024), ("B", 1000)) for n, p in enumerate("KMGT", start=1)}


def _read_bytes(value: object) -> object:
    """Returns ``20GiB`` as a number of bytes; anything else goes on as it is, to be refused."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?B|B)", value) if isinstance(value, str) else None
    return int(Decimal(match[1]) * _UNITS[match[2]]) if match else value


_SLUG = "a letter or digit, then at most 99 letters, digits, dots, dashes or underscores"
_BYTES = "bytes: a whole number above 0, or like 20GiB (KiB MiB GiB TiB KB MB GB TB)"
_LAW = "auto, exact, sketch, or a section with keys of kind, precision, misfits"
_ESTIMATION = "simultaneous, sequential, or a section with keys of kind, blocks, start"
_DEVICES = r"^(auto|cpu|cuda(:[0-9]{1,4})?)$"
Version = Annotated[int, Field(strict=True, ge=1, le=1, description="1")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description=_SLUG)]
Bytes = Annotated[int, BeforeValidator(_read_bytes), Field(strict=True, gt=0, description=_BYTES)]
Device = Annotated[str, Field(pattern=_DEVICES, description="auto, cpu, cuda or cuda:N")]
Precision = Annotated[int, Field(strict=True, ge=1, le=8, description="a whole number from 1 to 8")]


@final
class Estimation(Section):
    """Which activations a site's map is fitted on. Text alone is the kind.

    Args:
        kind: ``simultaneous`` takes those of the model as it is, ``sequential`` those that the maps before have moved.
        blocks: Into how many groups of sites a sequential fit is parted, each of them fitted simultaneously and with a
            forward of its own; None fits every site by itself, in one forward in all.
        start: Folder of a steer whose maps a sequential fit takes over as they are; the sites that it lacks are fitted
            on what these move.
    """

    kind: Literal["simultaneous", "sequential"] = "simultaneous"
    blocks: Count | None = None
    start: TextOrNone = None

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> object:
        if self.blocks is None and self.start is None:
            return self.kind
        written = serialize(self)
        return {name: value for name, value in written.items() if name != "start" or value is not None}

    @field_validator("blocks")
    @classmethod
    def _are_of_a_sequential_fit(cls, blocks: int | None, info: ValidationInfo) -> int | None:
        if blocks is not None and info.data.get("kind") == "simultaneous":
            raise ValueError("no blocks with 'kind: simultaneous', which fits all sites at once")
        return blocks

    @field_validator("start")
    @classmethod
    def _is_of_a_sequential_fit(cls, start: str | None, info: ValidationInfo) -> str | None:
        if start is not None and info.data.get("kind") == "simultaneous":
            raise ValueError("no start with 'kind: simultaneous', whose maps do not depend on one another")
        return start


@final
class Law(Section):
    """How the samples of a side become a law. Text alone is the kind.

    Args:
        kind: ``exact`` keeps the values, ``sketch`` counts them; ``auto`` takes what the number of samples asks for.
        precision: A sketch has ``2 ** precision`` buckets in each octave.
        misfits: What is done about neurons whose sketch had a frame that does not fit: ``report`` says so, ``mend``
            counts them anew from the activations, all of which have to be stored.
    """

    kind: Literal["auto", "exact", "sketch"] = "auto"
    precision: Precision = PRECISION
    misfits: Literal["report", "mend"] = "report"

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("precision")
    @classmethod
    def _exact_has_none(cls, precision: int, info: ValidationInfo) -> int:
        # The default is let through: it stands in the dump of an exact law, which is read again.
        if precision != PRECISION and info.data.get("kind") == "exact":
            raise ValueError("no precision with 'kind: exact', which keeps the values as they are")
        return precision


@final
class Compute(Section):
    """What the job runs on, and how its prompts are cut into tasks.

    Args:
        workers: Number of actors; 0 runs in this process.
        reducers: Number of actors that fold the sketches of units; none run without workers, or for exact laws.
        address: ``local`` starts Ray here; anything else names a running cluster.
        batch_tokens: Tokens of a micro-batch, padding included.
        threads: Threads of a worker.
        memory: Bytes that a worker may take; None is its share of what the machine has.
    """

    workers: CountOrZero = 2
    reducers: Count = 1
    address: Text = "local"
    device: Device = "auto"
    max_tokens: Count = 128
    unit_size: Count = 512
    batch_tokens: Annotated[Count, Field(validate_default=True)] = 4096
    threads: Count = 1
    memory: Bytes | None = None

    @field_validator("batch_tokens")
    @classmethod
    def _holds_one_prompt(cls, batch_tokens: int, info: ValidationInfo) -> int:
        padded = -(-info.data.get("max_tokens", 1) // PADDING) * PADDING
        if batch_tokens < padded:
            raise ValueError(f"at least {padded}, which is max_tokens rounded up to a multiple of {PADDING}")
        return batch_tokens


@final
class Store(Section):
    """What is kept beyond what the laws need, and how many bytes it may take.

    Args:
        activations: Of which prompts the pooled activations are kept, beyond what an exact law needs: ``sample`` is a
            hundredth of them, drawn by a hash, for audits.
        sketches: ``units`` keeps the sketch of each unit, ``merged`` only what reducers have merged of them.
        quota: Bytes that activations and sketches may take.
        laws: A catalogue of laws, a folder or a URL: a side whose law is in it is not run again, one that is not is
            added. None for none.
    """

    activations: Literal["all", "sample", "none"] = "all"
    sketches: Literal["units", "merged"] = "units"
    quota: Bytes = 20 << 30
    laws: TextOrNone = None


@final
class Failures(Section):
    """What may fail, and how long is waited.

    Args:
        quarantine_at_most: What share of the prompts may be quarantined before the job stops.
        attempts: How often a unit may lose its worker before its prompts are suspected.
        deadline: Seconds after which a unit's worker counts as hung; None takes what units took so far.
        lease: Seconds without a heartbeat after which another driver may take the run over.
    """

    quarantine_at_most: Annotated[Number, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.001
    attempts: Count = 3
    deadline: Annotated[Number | None, Field(gt=0, description="seconds, above 0")] = None
    lease: Annotated[Number, Field(gt=0, description="seconds, above 0")] = 30.0


@final
class Job(Section):
    """A whole job: a model, two sides, where to look, and how to fit.

    Args:
        extends: An earlier run, a folder or a URL, of fewer or other prompts: what it computed is not computed again.
    """

    version: Version
    name: Name
    model: Annotated[CausalLM | TextToImage, Field(discriminator="kind")]
    source: Side
    target: Side
    hookpoints: Texts
    template: Literal["plain", "chat"] = "plain"
    pooling: Literal["mean", "max", "min", "median", "last", "all"] = "mean"
    estimation: Annotated[Estimation, Field(description=_ESTIMATION)] = Estimation()
    transport: Annotated[DetZero | Transport, Field(discriminator="method")] = Transport(method="linear")
    law: Annotated[Law, Field(description=_LAW)] = Law()
    compute: Compute = Compute()
    store: Store = Store()
    failures: Failures = Failures()
    extends: TextOrNone = None

    @field_validator("pooling")
    @classmethod
    def _pools_sites_of_many_sizes(cls, pooling: str, info: ValidationInfo) -> str:
        if pooling == "all" and isinstance(info.data.get("model"), TextToImage):
            raise ValueError("another pooling for a text-to-image model, whose sites differ in their number of tokens")
        return pooling

    @field_validator("transport")
    @classmethod
    def _selects_site_by_site(cls, transport: DetZero | Transport, info: ValidationInfo) -> DetZero | Transport:
        chosen = transport.select
        if _is_sequential(info) and chosen is not None and (chosen.of == "sites" or chosen.across == "model"):
            raise ConflictError(
                "select", "neurons across each site with estimation: sequential, which fits site by site"
            )
        return transport

    @field_validator("law")
    @classmethod
    def _is_counted_once(cls, law: Law, info: ValidationInfo) -> Law:
        if law.misfits == "mend" and _is_sequential(info):
            raise ConflictError("misfits", "report with estimation: sequential, whose maps are fitted as samples come")
        return law

    @field_validator("law")
    @classmethod
    def _has_samples_to_read(cls, law: Law, info: ValidationInfo) -> Law:
        if law.kind == "sketch" and _reads_samples(info):
            raise ConflictError("kind", "auto or exact with method iti-probe, which reads single samples")
        return law

    @field_validator("store")
    @classmethod
    def _stores_samples_to_read(cls, store: Store, info: ValidationInfo) -> Store:
        if store.activations != "all" and _reads_samples(info):
            raise ConflictError("activations", "all with method iti-probe, which reads single samples")
        return store

    @field_validator("store")
    @classmethod
    def _stores_what_mends(cls, store: Store, info: ValidationInfo) -> Store:
        law = info.data.get("law")
        if isinstance(law, Law) and law.misfits == "mend":
            if store.activations != "all":
                raise ConflictError("activations", "all with misfits: mend, which reads them")
            if store.laws is not None:
                raise ConflictError("laws", "nothing with misfits: mend, for a law in a catalogue has no activations")
        return store

    def located(self, base: Path) -> "Job":
        """Returns the job with absolute paths; a hub id that is no folder under `base` stays."""
        model = self.model.model_copy(update={"path": located(self.model.path, base)})
        sides = {"source": self.source.located(base), "target": self.target.located(base)}
        extends = None if self.extends is None else from_base(self.extends, base)
        laws = None if self.store.laws is None else from_base(self.store.laws, base)
        store = self.store.model_copy(update={"laws": laws})
        start = None if self.estimation.start is None else from_base(self.estimation.start, base)
        estimation = self.estimation.model_copy(update={"start": start})
        changed = {"model": model, **sides, "extends": extends, "store": store, "estimation": estimation}
        return self.model_copy(update=changed)


def _is_sequential(info: ValidationInfo) -> bool:
    estimation = info.data.get("estimation")
    return isinstance(estimation, Estimation) and estimation.kind == "sequential"


def _reads_samples(info: ValidationInfo) -> bool:
    transport = info.data.get("transport")
    return isinstance(transport, Transport) and transport.method == "iti-probe"
