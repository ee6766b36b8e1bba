import datetime
import decimal
import pickle

import pyarrow as pa
import pytest

from pipeline.errors import WhereError
from pipeline.prompts.where import matching
from schemas.job import Range


def matches(column, condition):
    return matching("a.parquet", {"c": column}, {"c": condition}).to_pylist()


@pytest.mark.parametrize(
    ("column", "condition", "wanted"),
    [
        (pa.array([True, False, None]), True, [True, False, False]),
        (pa.array(["a", "b", None, ""]), ("a", ""), [True, False, False, True]),
        (pa.array(["a", "b", "c"]), Range(min="b"), [False, True, True]),
        (pa.array([1, 2, 3, None], pa.int8()), Range(min=2, max=300), [False, True, True, False]),
        (pa.array([1, 2, 3]), Range(min=1.5), [False, True, True]),
        (pa.array([1, 2, 255], pa.uint8()), (-1, 2, 300), [False, True, False]),
        (pa.array([2**63 + 5, 3], pa.uint64()), 2**63 + 5, [True, False]),
        (pa.array([2**53, 2**53 + 1]), 2**53 + 1, [False, True]),
        (pa.array([0.1, 0.2, float("nan")], pa.float32()), 0.1, [True, False, False]),
        (pa.array([0.1, 0.2], pa.float32()), Range(max=0.1), [True, False]),
        (pa.array([1.0, 1.5], pa.float16()), 1, [True, False]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), 1.5, [True, False]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), 2, [False, True]),
        (pa.array([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)]), Range(min="2020-06-01"), [False, True]),
        (pa.array([datetime.datetime(2020, 1, 1)]), "2020-01-01", [True]),
        (pa.array(["a", "b"]).dictionary_encode(), "b", [False, True]),
        (pa.array(["a", "b"], pa.string_view()), "b", [False, True]),
        (pa.nulls(2, pa.int64()), 1, [False, False]),
    ],
)
def test_values_match_by_type(column, condition, wanted):
    assert matches(column, condition) == wanted


def test_conditions_are_joined_by_and():
    columns = {"a": pa.array([1, 1, 2, None]), "b": pa.array(["x", "y", "x", "x"])}
    assert matching("f", columns, {"a": 1, "b": "x"}).to_pylist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("column", "condition", "sentence"),
    [
        (pa.array(["a"]), 1, "holds string, which cannot be compared with 1 (int)"),
        (pa.array(["a"]), True, "holds string, which cannot be compared with True (bool)"),
        (pa.array([True]), 1, "holds bool, which cannot be compared with 1 (int)"),
        (pa.array([True]), "yes", "holds bool, which cannot be compared with 'yes' (str)"),
        (pa.array([1]), True, "holds int64, which cannot be compared with True (bool)"),
        (pa.array([1.5]), ("1.5",), "holds double, which cannot be compared with '1.5' (str)"),
        (pa.array([1]), (1, "a"), "holds int64, which cannot be compared with 'a' (str)"),
        (pa.array([1]), 2**80, "holds int64, which cannot be compared with"),
        (pa.array([[1]]), 1, "holds list<item: int64>, which cannot be compared with 1 (int)"),
        (pa.array([b"a"]), "a", "holds binary, which cannot be compared with 'a' (str)"),
        (
            pa.array([datetime.date(2020, 1, 1)]),
            "soon",
            "holds date32[day], which cannot be compared with 'soon' (str)",
        ),
    ],
)
def test_a_condition_of_another_type_is_refused(column, condition, sentence):
    with pytest.raises(WhereError) as caught:
        matches(column, condition)
    assert f"column 'c' of a.parquet {sentence}" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
