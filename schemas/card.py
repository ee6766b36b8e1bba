"""The card of a steer: what a person or a program must know before applying it.

Plain dataclasses, so that the loader needs nothing but the standard library to read one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

from schemas.receipt import Quarantined
from schemas.record import digest

FORMAT_VERSION: Final = 3


@final
@dataclass(frozen=True)
class SiteCard:
    """One site of a steer.

    Args:
        hookpoint: Name of the site, ``module[:output][@step]``.
        module_type: Class name of the module.
        width: Number of neurons.
        displacement: Mean over neurons of ``mean |T(a) - a| / sd(a)`` over the source law, of neurons with spread.
        transported: Share of the source law's samples that lie inside the support, mean over neurons.
        tokens_transported: The same of the values of single source tokens, which spread wider than pooled ones.
        neurons_transported: Share of neurons that the map moves at all.
        error_median: Median over neurons with spread of the map's proven error in units of ``sd(a)``; the largest
            float32 where there is no bound.
        error_worst: The largest of the same.
        misfit: Neurons whose sketch had a frame that did not fit; 0 for laws that keep their samples.
    """

    hookpoint: str
    module_type: str
    width: int
    displacement: float
    transported: float
    tokens_transported: float
    neurons_transported: float
    error_median: float
    error_worst: float
    misfit: int


@final
@dataclass(frozen=True)
class SplitCard:
    """A micro-batch that ran in pieces, for want of memory.

    Args:
        unit: Number of the unit in its side.
        batch: Number of the micro-batch in its unit.
        parts: Pieces that it ran as.
    """

    unit: int
    batch: int
    parts: int


@final
@dataclass(frozen=True)
class SideCard:
    """One side's data.

    Args:
        num_prompts: Places of prompts that the side has, those of removed ones included.
        num_removed: Places whose prompt was removed since an earlier run.
        num_samples: Samples that its law rests on.
        num_quarantined: Prompts left out because they gave no activation.
        num_truncated: Prompts cut to `max_tokens`.
        fingerprint: SHA-256 over the prompts in canonical order; empty when fitted in memory.
        quarantined: The prompts left out, and why; empty when fitted in memory.
        splits: The micro-batches that ran in pieces: a replay runs them so too.
    """

    num_prompts: int
    num_removed: int
    num_samples: int
    num_quarantined: int
    num_truncated: int
    fingerprint: str
    quarantined: tuple[Quarantined, ...] = ()
    splits: tuple[SplitCard, ...] = ()


@final
@dataclass(frozen=True)
class Card:
    """What a steer is, where it came from, and what it fits.

    Args:
        format_version: Version of the artifact format.
        name: Name of the steer.
        kind: ``causal-lm`` or ``text-to-image``, or ``module`` when fitted in memory on any other module.
        method: Method of the transport.
        support: ``observed``, ``tokens``, ``unbounded``, or the two percentiles.
        threshold: Average precision above which ``det-zero`` set a neuron; other methods do not use it.
        select: Which neurons are moved, such as ``top 64 neurons of each site by w2``; empty for all.
        law: What the laws kept of each neuron: ``exact`` for every sample, ``sketch`` for counted cells.
        pooling: How the tokens of a prompt became one sample.
        template: ``plain`` or ``chat``.
        estimation: ``simultaneous``, or ``sequential`` with what else there is to say.
        sites: The sites, in execution order.
        timesteps: The denoiser's timesteps that the steps of the sites name; empty for language models.
        source: The source side.
        target: The target side.
        model_fingerprint: Fingerprint of the weights in memory, see `act.fingerprint`.
        checkpoint_fingerprint: SHA-256 of the model and tokenizer files; empty when fitted in memory.
        numerics: Device, dtype, threads, versions: the class of bits that the fit computed.
        plan: Fingerprint of the plan; empty when fitted in memory.
        spec: The spec as written; empty when fitted in memory.
        tensors: SHA-256 of `steer.safetensors`; empty until saved.
        checksum: SHA-256 of this card as it is written with an empty checksum; empty until saved.
    """

    format_version: Literal[3]
    name: str
    kind: str
    method: str
    support: str
    threshold: float
    select: str
    law: str
    pooling: str
    template: str
    estimation: str
    sites: tuple[SiteCard, ...]
    timesteps: tuple[float, ...]
    source: SideCard
    target: SideCard
    model_fingerprint: str
    checkpoint_fingerprint: str
    numerics: Mapping[str, Any]
    plan: str
    spec: Mapping[str, Any]
    tensors: str
    checksum: str = ""

    @property
    def sealed(self) -> "Card":
        """The card with the checksum that belongs to it."""
        return replace(self, checksum=digest(replace(self, checksum="")))
