"""How an attempt at a unit differs from the plain one, and what a worker was doing when it was lost."""

from dataclasses import dataclass
from typing import final

from schemas.plan import SideName, Unit
from schemas.receipt import Quarantined, Split

#: How the reason begins that masks a prompt which does not survive packing. Nobody knows its length, so it is left out.
PACKING = "packing"


@final
@dataclass(frozen=True)
class Treatment:
    """How an attempt at a unit differs from the plain one.

    Args:
        attempt: Number of the attempt, from 1.
        careful: Whether a breadcrumb is left before each micro-batch.
        masked: Prompts that are replaced by filler, by their place in the side's canonical order, with the reason; one
            whose reason begins with ``packing`` is left out of packing too.
        splits: Micro-batches that are known to need splitting.
        parts: Every micro-batch is split in at least so many pieces, after a kill for want of memory.
    """

    attempt: int = 1
    careful: bool = False
    masked: tuple[Quarantined, ...] = ()
    splits: tuple[Split, ...] = ()
    parts: int = 1


@final
@dataclass(frozen=True)
class Crumb:
    """A breadcrumb: what a worker was about to do. The last one of a lost worker names the suspects.

    Args:
        side: Side of the unit.
        unit: Number of the unit within its side.
        attempt: The attempt that left it.
        batch: Number of the micro-batch within the unit; None while the prompts are packed.
        rows: Rows of the unit, from 0, that the micro-batch holds.
        worker: Process id of the worker.
    """

    side: SideName
    unit: int
    attempt: int
    batch: int | None
    rows: tuple[int, ...]
    worker: int


@final
@dataclass(frozen=True)
class Probe:
    """A question to a worker: does this micro-batch kill or hang with only these rows real?

    Args:
        unit: The unit.
        batch: Number of the micro-batch within the unit; None asks about packing.
        rows: Rows of the unit, from 0, that stay real; all others are filler. For packing, only these are packed.
        masked: Known culprits, always filler.
        parts: The micro-batch is split in at least so many pieces.
    """

    unit: Unit
    batch: int | None
    rows: tuple[int, ...]
    masked: tuple[Quarantined, ...]
    parts: int = 1
