import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prompts import sampled
from pipeline.prompts.draw import lots
from schemas.plan import SIDES

NUM = 1_000_000


@given(bounds=st.lists(st.integers(0, 5000), min_size=1, max_size=8).map(sorted), side=st.sampled_from(SIDES))
def test_it_does_not_matter_how_a_side_is_cut(bounds, side):
    whole = sampled(side, 0, bounds[-1])
    parts = [sampled(side, start, stop) for start, stop in zip([0, *bounds], bounds, strict=False)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("side", SIDES)
def test_one_in_a_hundred_everywhere(side):
    drawn = sampled(side, 0, NUM)
    # Five deviations of a binomial count: of all, of each hundredth, of each residue, and of neighbours.
    assert abs(drawn.sum() - 10_000) < 5 * np.sqrt(9900)
    for counts in (drawn.reshape(100, -1).sum(1), drawn.reshape(-1, 100).sum(0)):
        assert np.abs(counts - 100).max() < 5 * np.sqrt(99)
    assert abs((drawn[1:] & drawn[:-1]).sum() - 100) < 50


def test_sides_and_draws_are_independent():
    source, target = (sampled(side, 0, NUM) for side in SIDES)
    assert abs((source & target).sum() - 100) < 50
    first = np.sort(lots(np.arange(NUM), 0))[NUM // 100]
    assert abs((source & (lots(np.arange(NUM), 0) < first)).sum() - 100) < 50


def test_the_sample_is_the_same_in_every_version():
    assert np.flatnonzero(sampled("source", 0, 400)).tolist() == [91, 219, 272, 397]
    assert np.flatnonzero(sampled("target", 0, 400)).tolist() == [0, 309, 332]
