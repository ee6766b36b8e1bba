import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.fold import Fold, UnitSet, content
from schemas.receipt import Output

UNITS = st.sets(st.integers(0, 80), max_size=20)


def output(unit: int) -> Output:
    return Output("source", f"sketches.zarr/source/c/{unit}", 100 + unit, 1000, f"{unit:064x}")


def held(units: list[int]) -> UnitSet:
    contents = UnitSet()
    for unit in units:
        contents = contents.with_unit(unit, output(unit))
    return contents


@given(UNITS, st.randoms())
def test_a_set_is_its_units_in_whatever_order_they_came(units, random):
    order = sorted(units)
    shuffled = random.sample(order, len(order))
    contents = held(shuffled)
    assert contents == held(order)
    assert list(contents) == order
    assert contents.num_units == len(units)
    assert all((unit in contents) == (unit in units) for unit in range(90))


@given(UNITS.filter(bool), UNITS)
def test_a_set_knows_the_sketches_that_it_is_made_of(units, more):
    contents = {unit: content(unit, output(unit)) for unit in units | more}
    merged = held(sorted(units))
    assert merged.is_of(contents)
    other = min(units)
    assert not merged.is_of(contents | {other: content(other, output(other + 1))})
    assert not merged.is_of({unit: one for unit, one in contents.items() if unit != other})
    assert UnitSet().is_of({})


@given(UNITS)
def test_a_fold_says_what_it_holds(units):
    contents = held(sorted(units))
    fold = Fold("k", "source", 1, 3, contents.bitmap, contents.total, 7, output(0))
    assert UnitSet.of(fold) == contents
    assert fold.num_units == len(units)
    assert [site for site in range(5) if fold.covers(site)] == [1, 2]


def test_a_unit_counts_once():
    with pytest.raises(AssertionError, match="counts once"):
        held([3]).with_unit(3, output(3))


def test_bits_lie_where_they_are_said_to():
    assert held([0, 9]).bitmap == bytes([1, 2])
    assert UnitSet().bitmap == b""


@pytest.mark.parametrize("changes", [{"kind": "target"}, {"size": 1}, {"sha256": "f" * 64}])
def test_other_files_have_another_content(changes):
    assert content(3, output(3)) != content(3, dataclasses.replace(output(3), **changes))
    assert content(3, output(3)) != content(4, output(3))
    assert content(3, output(3)) == content(3, dataclasses.replace(output(3), path="elsewhere"))  # a run may be moved
    assert 0 <= content(3, output(3)) < 1 << 63
