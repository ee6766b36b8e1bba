"""Whole runs in simulated time, with every misfortune at once: each unit lands once, and only culprits are blamed."""

import random

import pytest

from pipeline.scheduling import Policy, Scheduler
from tests.pipeline.scheduling.simulation import Fates, Records, SimulatedCrew, units

NUM_UNITS = 60


def misfortunes(rng: random.Random, num_places: int) -> Fates:
    """Draws a world. Parameters are biased towards the rare."""
    rows = rng.sample(range(NUM_UNITS * 16), rng.choice([0, 1, 3, 6]))
    poison: dict[tuple[int, ...], str] = {(row,): rng.choice(["died", "hang", "memory"]) for row in rows}
    if rng.random() < 0.3:  # two that are harmless alone, in a micro-batch of their own
        start = next(start for start in range(0, 1000, 8) if not {row // 8 * 8 for row in rows} & {start})
        poison[start + rng.randrange(4), start + 4 + rng.randrange(4)] = "died"
    often = rng.choice([0.0, 0.002, 0.005])
    return Fates(
        poison=poison,
        death=often,
        hang=rng.choice([0.0, often]),
        vanishing=rng.choice([0.0, often]),
        node_loss=rng.choice([0.0, often / 2]),
        dawdling=rng.choice([0.0, 0.05]),
        lost_reply=rng.choice([0.0, 0.05, 0.3]),
        bad_start=rng.choice([0.0, 0.05]) if num_places >= 4 else 0.0,
        no_room=rng.choice([0.0, 0.1]) if num_places >= 7 else 0.0,
    )


@pytest.mark.parametrize("seed", range(40))  # the name of the test that fails tells its seed
def test_every_unit_lands_once_and_only_culprits_are_blamed(seed):
    rng = random.Random(seed)
    num_places = rng.choice([1, 2, 4, 7])
    fates, records = misfortunes(rng, num_places), Records()
    crew = SimulatedCrew(num_places, records, fates, seed)
    policy = Policy(window=rng.choice([1, 2, 3]), start_deadline=rng.choice([60.0, 900.0]))
    landed = list(Scheduler(crew, records, policy).run(iter(units(NUM_UNITS))))
    assert sorted(receipt.unit for receipt in landed) == list(range(NUM_UNITS))
    assert {receipt.unit: receipt for receipt in landed} == {unit.index: one for unit, one in records.receipts.items()}
    blamed = {one.row for receipt in landed for one in receipt.quarantined}
    assert blamed == {row for culprits in fates.poison for row in culprits}
    assert crew.longest <= policy.window
