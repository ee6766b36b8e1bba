"""Audit: whether each prompt counts exactly once, by what receipts, prompts and cards say of them."""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from pipeline.store import ActivationStore, SketchStore
from pipeline.tally import SideTally
from schemas.card import SideCard
from schemas.plan import LAWS, Plan, SideName, Unit
from schemas.receipt import OutputKind, Receipt


def lost_twice(unit: Unit, receipt: Receipt, removed: NDArray[np.int64]) -> str | None:
    """Returns what is wrong with a receipt that does not account for each prompt exactly once, or None.

    Args:
        unit: The unit.
        receipt: Its receipt.
        removed: Rows of the unit, from 0, whose prompt was removed since an earlier run.
    """
    lost = np.array([one.row - unit.start for one in receipt.quarantined], np.int64)
    if len(np.unique(lost)) != len(lost) or ((lost < 0) | (lost >= unit.num_prompts)).any():
        return "it quarantines a prompt twice, or one of another unit"
    left_out = np.sort(np.concatenate([lost, removed]))
    if not np.array_equal(left_out, np.flatnonzero(~receipt.rows)):
        counted = int(receipt.rows.sum())
        return (
            f"of {unit.num_prompts} prompts {counted} count, {len(lost)} are quarantined and {len(removed)} removed: "
            "one counts twice, or not at all"
        )
    return None


def other_files(
    plan: Plan, unit: Unit, receipt: Receipt, activations: ActivationStore, sketches: SketchStore
) -> str | None:
    """Returns what is wrong with the files that a receipt names, or None. The files are not looked at."""
    wanted: dict[OutputKind, str] = {law: sketches.shard(law, unit.index) for law in LAWS if plan.sketches(law, unit)}
    needed = set(wanted)
    if plan.kept(unit.side) != "none":
        wanted["activations"] = activations.shard(unit)
        if not receipt.origin or plan.law[unit.side].kind == "exact":
            needed.add("activations")  # a law from a catalogue comes without them
    found = {output.kind: output.path for output in receipt.outputs}
    if len(found) != len(receipt.outputs) or not needed <= found.keys():
        return "it does not name each file of its unit once"
    odd = next((kind for kind, path in found.items() if wanted.get(kind) != path), None)
    return None if odd is None else f"it names {found[odd]}, which is no file of its unit"


def other_counts(plan: Plan, side: SideName, card: SideCard, tally: SideTally) -> str | None:
    """Returns what a card says otherwise than the receipts of all units of a side, or None."""
    facts = plan.side(side)
    wanted = SideCard(
        num_prompts=facts.num_prompts,
        num_removed=facts.num_removed,
        num_samples=tally.num_samples,
        num_quarantined=tally.num_lost,
        num_truncated=tally.num_truncated,
        fingerprint=facts.fingerprint,
        quarantined=tuple(sorted(tally.lost, key=lambda one: one.row)),
        splits=tuple(sorted(tally.splits, key=lambda one: (one.unit, one.batch))),
    )
    odd = next((one.name for one in fields(SideCard) if getattr(card, one.name) != getattr(wanted, one.name)), None)
    return None if odd is None else f"its {odd} of the {side} is not what the receipts say together"
