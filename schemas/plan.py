"""The plan: everything that a run will do, fixed before any of it happens."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, final

from schemas.record import LATER, digest

SideName = Literal["source", "target"]
SIDES: tuple[SideName, ...] = ("source", "target")

#: A law is that of a side's pooled samples, or that of the source's single tokens.
LawName = Literal["source", "target", "tokens"]
LAWS: tuple[LawName, ...] = ("source", "target", "tokens")

#: Which pooled activations are stored: of every prompt, of a hashed hundredth of them, or of none.
Kept = Literal["all", "sample", "none"]

#: Neurons of one inner chunk of the stores.
CHUNK_NEURONS = 64

#: Most samples a side of which a law keeps the values, unless the spec says otherwise.
EXACT_SAMPLES = 1024

#: The tokens of the units that begin among so many source prompts become a law of their own; with the support
#: ``tokens``, those of all units.
TOKEN_PROMPTS = 1024

#: Precision of the law of tokens, of which nothing but shares and extremes is asked: a fourth of the memory.
TOKEN_PRECISION = 3


def side_of(law: LawName) -> SideName:
    """Returns the side whose units have samples of a law."""
    return "target" if law == "target" else "source"


def whole_chunks(width: int) -> int:
    """Returns a number of neurons rounded up to whole chunks."""
    return -(-width // CHUNK_NEURONS) * CHUNK_NEURONS


@final
@dataclass(frozen=True)
class Site:
    """One place where activations are taken: an output of a module, at one denoising step if there are steps.

    Args:
        hookpoint: Name of the site, ``module[:output][@step]``.
        module_type: Class name of the module.
        width: Number of neurons.
    """

    hookpoint: str
    module_type: str
    width: int


@final
@dataclass(frozen=True)
class Numerics:
    """What decides the last bit of an activation besides the model, the prompts and the micro-batches.

    Args:
        device: ``cpu``, or the name of the GPU.
        dtype: Type of the model's weights.
        threads: Intra-op threads of a worker: they change float32 sums.
        attention: Attention implementation.
        cpu: Instruction set that torch uses.
        versions: Versions of the packages that compute.
    """

    device: str
    dtype: str
    threads: int
    attention: str
    cpu: str
    versions: Mapping[str, str]


@final
@dataclass(frozen=True)
class ModelFacts:
    """A model on disk, seen without loading its weights.

    Args:
        kind: ``causal-lm`` or ``text-to-image``.
        fingerprint: SHA-256 over configuration, weights and tokenizer as they lie on disk.
        num_parameters: Number of parameters.
        weight_bytes: Bytes of the loaded weights and buffers.
    """

    kind: str
    fingerprint: str
    num_parameters: int
    weight_bytes: int


@final
@dataclass(frozen=True)
class SideFacts:
    """The prompts that one side selects.

    Args:
        num_prompts: How many places there are, those of removed prompts included.
        fingerprint: SHA-256 over them in order, the same for every file format.
        num_removed: Places whose prompt an earlier run had, and this one has not.
    """

    num_prompts: int
    fingerprint: str
    num_removed: int = 0


@final
@dataclass(frozen=True)
class Law:
    """How the samples of a side become a law.

    Args:
        kind: ``exact`` keeps the values; ``sketch`` counts them in a frame.
        precision: The sketch has ``2 ** precision`` buckets in each octave.
        misfits: ``mend`` counts neurons whose frame does not fit anew, from the stored activations.
    """

    kind: Literal["exact", "sketch"]
    precision: int
    misfits: Literal["report", "mend"] = "report"


@final
@dataclass(frozen=True)
class Memory:
    """Peak bytes of one worker, and of one reducer, from shapes.

    Args:
        weights: The model's weights.
        forward: Live tensors of the largest micro-batch's forward.
        block: Pooled activations of one unit.
        sketch: Sketches of one unit: that of its tokens, and the one being written.
        reducer: The running laws of the hookpoints that a reducer owns, and a unit of them; 0 without reducers.
        available: What the machine (or GPU) has for one worker.
        held: Of a sequential fit: pooled activations and sketches of tokens of all units that a worker takes through
            the model together; else 0.
        waiting: Of a sequential fit: live tensors of all micro-batches of a worker while they wait at a site, at most;
            what has no room goes to a temporary file.
    """

    weights: int
    forward: int
    block: int
    sketch: int
    reducer: int
    available: int
    held: int = field(default=0, metadata=LATER)
    waiting: int = field(default=0, metadata=LATER)

    @property
    def worker(self) -> int:
        """Peak bytes of one worker. A block being written exists twice: once more as encoded chunks."""
        return self.weights + self.forward + 2 * self.block + self.sketch + self.held

    @property
    def room(self) -> int:
        """Bytes that are left for what waits."""
        return self.available - self.worker

    @property
    def spills(self) -> bool:
        """Whether what waits may have no room in memory."""
        return self.waiting > self.room


@final
@dataclass(frozen=True)
class Unit:
    """R prompts of one side: what one task computes, one shard stores and one receipt accounts for.

    Args:
        side: ``source`` or ``target``.
        index: Number of the unit within its side, from 0.
        start: Its first prompt, in the side's canonical order.
        stop: One past its last prompt.
    """

    side: SideName
    index: int
    start: int
    stop: int

    @property
    def num_prompts(self) -> int:
        """Number of prompts in the unit."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.side} unit {self.index}"


@final
@dataclass(frozen=True)
class Plan:
    """Everything that a run will do. Written once, before any work.

    Args:
        version: Version of this format.
        spec: The spec as written.
        model: The model.
        location: Folder from which workers load it.
        numerics: Class of bits that the run computes.
        sites: Where activations are taken, in execution order.
        timesteps: The denoiser's timesteps, in order; empty for language models.
        source: The source side.
        target: The target side.
        rows_per_prompt: Rows of the store for one prompt: 1, or `max_tokens` under pooling ``all``.
        law: How the samples of each side become its law. The side alone decides it.
        memory: Peak bytes of a worker and of a reducer.
        disk: Bytes of the activation store when every unit is written; 0 when it keeps none.
        sketch_disk: About the bytes of the sketches of units that are kept at once.
        start: Checksum of the card of the steer that a sequential fit starts from; empty where it starts from none.
    """

    version: Literal[1]
    spec: Mapping[str, Any]
    model: ModelFacts
    location: str
    numerics: Numerics
    sites: tuple[Site, ...]
    timesteps: tuple[float, ...]
    source: SideFacts
    target: SideFacts
    rows_per_prompt: int
    law: Mapping[SideName, Law]
    memory: Memory
    disk: int
    sketch_disk: int
    start: str = field(default="", metadata=LATER)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that changes the numbers: not names, places, worker counts or budgets."""
        return digest(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """The parts of the plan that change the numbers, by name."""
        spec = {key: self.spec[key] for key in ("template", "pooling", "estimation", "transport")}
        if self.start:  # by its content, wherever it lies
            spec["estimation"] = {**spec["estimation"], "start": self.start}
        compute = {key: self.spec["compute"][key] for key in ("max_tokens", "unit_size", "batch_tokens")}
        places = {"path", "gguf_file", "revision"}
        settings = {key: value for key, value in self.spec["model"].items() if key not in places}
        facts = {"model", "numerics", "sites", "timesteps", "source", "target", "rows_per_prompt", "law"}
        return {"spec": spec, "compute": compute, "settings": settings} | {
            name: value for name, value in dataclasses.asdict(self).items() if name in facts
        }

    @property
    def unit_size(self) -> int:
        """Prompts of a full unit."""
        return int(self.spec["compute"]["unit_size"])

    @property
    def width(self) -> int:
        """Neurons of all sites together: columns of the store."""
        return sum(site.width for site in self.sites)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """The range of the store's columns that belongs to each site."""
        ranges, start = {}, 0
        for site in self.sites:
            ranges[site.hookpoint] = slice(start, start + site.width)
            start += site.width
        return ranges

    @property
    def num_prompts(self) -> int:
        """Prompts of both sides."""
        return self.source.num_prompts + self.target.num_prompts

    @property
    def most_lost(self) -> int:
        """How many prompts of both sides may be quarantined."""
        return int(self.spec["failures"]["quarantine_at_most"] * self.num_prompts)

    def kept(self, side: SideName) -> Kept:
        """Returns which pooled activations of a side are stored. An exact law is made of all of them."""
        if self.law[side].kind == "exact":
            return "all"
        kept: Kept = self.spec["store"]["activations"]
        return kept

    @property
    def compacts(self) -> bool:
        """Whether the sketches of units go once reducers have merged them."""
        return bool(self.spec["store"]["sketches"] == "merged")

    @property
    def estimation(self) -> str:
        """The estimation in words, as on a card."""
        if not self.sequential:
            return "simultaneous"
        blocks = "" if self.blocks is None else f" in {self.blocks} blocks"
        return f"sequential{blocks}{', from a former steer' if self.start else ''}"

    @property
    def sequential(self) -> bool:
        """Whether each site is fitted on activations that the maps before it have moved."""
        return bool(self.spec["estimation"] != "simultaneous")

    @property
    def blocks(self) -> int | None:
        """Into how many groups a sequential fit parts its sites; None where each is fitted by itself."""
        estimation = self.spec["estimation"]
        return estimation["blocks"] if isinstance(estimation, Mapping) else None

    @property
    def support(self) -> object:
        """The support: a word, or two percentiles."""
        return self.spec["transport"]["support"]

    def precision(self, law: LawName) -> int:
        """Returns the precision with which the sketches of a law count."""
        side = self.law[side_of(law)]
        return min(TOKEN_PRECISION, side.precision) if law == "tokens" else side.precision

    def sketches(self, law: LawName, unit: Unit) -> bool:
        """Returns whether a unit's samples are sketched for a law."""
        if law == "tokens":
            return unit.side == "source" and (self.support == "tokens" or unit.start < TOKEN_PROMPTS)
        return unit.side == law and self.law[law].kind == "sketch"

    def sketched_units(self, law: LawName) -> int:
        """Returns how many units are sketched for a law: the first ones of its side."""
        units = self.num_units(side_of(law))
        if law != "tokens":
            return units if self.law[law].kind == "sketch" else 0
        return units if self.support == "tokens" else min(units, -(-TOKEN_PROMPTS // self.unit_size))

    @property
    def sketched(self) -> bool:
        """Whether some law is a sketch of all that its units have, so that reducers have something to fold."""
        return any(self.law[name].kind == "sketch" for name in SIDES)

    @property
    def activations(self) -> dict[str, Any]:
        """All that decides the activations of a prompt but the prompt and its place, by name."""
        spec = {key: self.spec[key] for key in ("template", "pooling")}
        shared = {key: part for key, part in self.identity.items() if key not in {"source", "target", "law", "spec"}}
        return shared | {"spec": spec}

    def unit_key(self, name: SideName) -> str:
        """Returns what names how the units of a side are computed: SHA-256 over what decides them, but prompts."""
        return self._unit_keys[name]

    def side_key(self, name: SideName) -> str:
        """Returns what names a side's law: SHA-256 over all that decides it, and over nothing of the other side."""
        return self._side_keys[name]

    @cached_property
    def _unit_keys(self) -> dict[SideName, str]:
        tokens = {"source": "all" if self.support == "tokens" else "first", "target": "none"}
        laws = self.identity["law"]
        keys = {name: digest(self.activations | {"law": laws[name], "tokens": tokens[name]}) for name in SIDES}
        # Moved activations depend on all that the maps do.
        return keys | {"source": self.fingerprint} if self.sequential else keys

    @cached_property
    def _side_keys(self) -> dict[SideName, str]:
        identity = self.identity
        return {name: digest({"units": self.unit_key(name), "prompts": identity[name]}) for name in SIDES}

    def side(self, name: SideName) -> SideFacts:
        """Returns the side of that name."""
        return self.source if name == "source" else self.target

    def num_units(self, name: SideName) -> int:
        """Returns how many units a side has."""
        return -(-self.side(name).num_prompts // self.unit_size)

    def unit(self, name: SideName, index: int) -> Unit:
        """Returns a unit of a side."""
        start = index * self.unit_size
        return Unit(name, index, start, min(start + self.unit_size, self.side(name).num_prompts))

    def units(self) -> Iterator[Unit]:
        """Yields the units of both sides in canonical order."""
        for name in SIDES:
            for index in range(self.num_units(name)):
                yield self.unit(name, index)
