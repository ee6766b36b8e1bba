"""What the pipeline asks of a model, whatever its kind: a checkpoint on disk, and the model loaded from it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

from torch import nn

from act.clock import AbstractClock
from act.pooling import TokenSpans
from schemas.plan import ModelFacts, Site


@final
@dataclass(frozen=True)
class PackingRule:
    """How a unit's prompts become micro-batches: with the prompts themselves, all that decides them.

    Args:
        template: ``plain`` or ``chat``.
        max_tokens: Longer prompts are cut to this many tokens.
        batch_tokens: Tokens of a micro-batch, padding included.
    """

    template: str
    max_tokens: int
    batch_tokens: int


@final
@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Prompts that go through the model together.

    Args:
        rows: Their places in the unit, in batch order.
        inputs: What the model's forward takes: by name a sequence or tensor with an entry for each row.
        spans: The real tokens of each row; None when all are real.
    """

    rows: tuple[int, ...]
    inputs: Mapping[str, Any]
    spans: TokenSpans | None

    def split(self, parts: int) -> "tuple[MicroBatch, ...]":
        """Returns its rows in so many pieces, as equal as possible, none of them empty and none padded otherwise."""
        num_rows, parts = len(self.rows), min(parts, len(self.rows))
        if parts <= 1:
            return (self,)
        cuts = pairwise(part * num_rows // parts for part in range(parts + 1))
        return tuple(self._piece(slice(start, stop)) for start, stop in cuts)

    def _piece(self, places: slice) -> "MicroBatch":
        spans = self.spans and TokenSpans(self.spans.mask[places], self.spans.rows[places])
        return MicroBatch(self.rows[places], {name: whole[places] for name, whole in self.inputs.items()}, spans)


@final
@dataclass(frozen=True, eq=False)
class Packed:
    """A unit, ready to run.

    Args:
        batches: Its micro-batches.
        num_tokens: Real tokens of each prompt, after truncation; 0 for a prompt that has none and is in no batch.
        num_truncated: Prompts that were cut.
    """

    batches: tuple[MicroBatch, ...]
    num_tokens: tuple[int, ...]
    num_truncated: int


@final
@dataclass(frozen=True)
class Survey:
    """What a dry run of one micro-batch showed.

    Args:
        sites: The sites, in execution order.
        timesteps: The denoiser's timesteps; empty without steps.
        forward_bytes: Most bytes of tensors alive at once in the largest micro-batch's forward, weights excluded.
    """

    sites: tuple[Site, ...]
    timesteps: tuple[float, ...]
    forward_bytes: int


@final
@dataclass(frozen=True)
class Sampling:
    """How to generate.

    Args:
        new_tokens: Tokens of a continuation; language models only.
        repetition_penalty: Divides the scores of tokens that occurred; 1 for none; language models only.
        temperature: 0 takes the likeliest token; language models only.
        template: ``plain`` or ``chat``; language models only.
        seed: Seed of what is random: sampled tokens, an image's first noise.
    """

    new_tokens: int = 40
    repetition_penalty: float = 1.2
    temperature: float = 0.0
    template: str = "plain"
    seed: int = 0


@final
@dataclass(frozen=True)
class Waiting:
    """A full micro-batch that waits at a site.

    Args:
        num_bytes: Bytes of the tensors that its forward keeps alive.
        num_prompts: How many prompts it holds, as long as all are as long as can be.
    """

    num_bytes: int
    num_prompts: int


class AbstractModel(ABC):
    """A model in memory."""

    @property
    @abstractmethod
    def root(self) -> Any:  # noqa: ANN401
        """What `act.apply` steers: a module, or a diffusers pipeline."""

    @property
    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """Its modules by the names that hookpoints use."""

    @abstractmethod
    def clock(self, timesteps: Sequence[float]) -> AbstractClock:
        """Returns the clock of its forwards."""

    @abstractmethod
    def pack(self, prompts: Sequence[str | None], place: int, rule: PackingRule) -> Packed:
        """Returns a unit's micro-batches: a pure function of its arguments.

        Args:
            prompts: The unit's prompts.
            place: Place of the first one in its side's canonical order.
            rule: How to cut and pack them.
        """

    @abstractmethod
    def mask(self, batch: MicroBatch, rows: Collection[int]) -> MicroBatch:
        """Returns a micro-batch whose prompts in some rows are filler, which the model is known to survive.

        Shape, order and spans stay, so that the other rows keep their bits, wherever a row's bits do not depend on
        what its neighbours hold.

        Args:
            batch: The micro-batch.
            rows: Rows of the unit, of which the micro-batch may hold some.
        """

    @abstractmethod
    def forward(self, batch: MicroBatch) -> None:
        """Runs one micro-batch through the model, without gradients."""

    @abstractmethod
    def alone(self, clock: AbstractClock) -> Callable[[MicroBatch], None]:
        """Returns what runs one micro-batch as `forward` does, whatever others do with the model in between.

        Args:
            clock: The clock that follows all of them.
        """

    @abstractmethod
    def generate(self, prompt: str, sampling: Sampling) -> Any:  # noqa: ANN401
        """Returns what the model makes of a prompt: the continuation as text, or an image as `PIL.Image.Image`."""


class AbstractCheckpoint(ABC):
    """A model on disk."""

    @property
    @abstractmethod
    def facts(self) -> ModelFacts:
        """What can be known without loading the weights."""

    @property
    @abstractmethod
    def location(self) -> Path:
        """The folder that workers load."""

    @property
    @abstractmethod
    def attention(self) -> str:
        """The attention implementation that its forwards use."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes `location` ready to load, once for all workers; what is ready is left alone."""

    @abstractmethod
    def survey(self, hookpoints: str | tuple[str, ...], rule: PackingRule, device: str) -> Survey:
        """Returns what a dry run shows; on fake tensors where the model allows, so that no weights are loaded.

        Args:
            hookpoints: Presets or patterns.
            rule: How units are packed: the dry run takes the largest micro-batch.
            device: Where it runs, if it needs the weights.

        Raises:
            HookpointNotFoundError: A preset or pattern matches no module.
            SiteVisitError: A hookpoint is never called, or more than once.
        """

    @abstractmethod
    def waiting(self, sites: Sequence[Site], rule: PackingRule, device: str) -> Waiting:
        """Returns what a full micro-batch keeps alive while it waits at a site, where that is most; runs as `survey`.

        Args:
            sites: The sites, in execution order.
            rule: How units are packed.
            device: Where the model runs, if that needs the weights.

        Raises:
            LockstepStateError: A forward changes the model, and so other forwards that have begun.
        """

    @abstractmethod
    def load(self, device: str) -> AbstractModel:
        """Loads the model."""
