import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import record
from schemas.plan import Unit
from schemas.receipt import Output, Quarantined, Receipt, Split, packed_tokens


def receipt(num_tokens: list[int]) -> Receipt:
    return Receipt(
        plan="p" * 64,
        model="m" * 64,
        side="target",
        unit=3,
        attempt=2,
        origin="",
        num_prompts=len(num_tokens),
        tokens=packed_tokens(num_tokens),
        num_truncated=1,
        quarantined=(Quarantined(13, "empty"),),
        splits=(Split(0, 4),),
        outputs=(Output("activations", "a/c/3", 100, 7, "a" * 64), Output("target", "s/c/3", 90, 8, "b" * 64)),
        seconds=1.5,
        compute_seconds=1.25,
        worker=17,
        peak_memory=1000,
    )


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_tokens_come_back_from_four_bytes_each(num_tokens: list[int]) -> None:
    packed = packed_tokens(num_tokens)
    assert len(packed) == 4 * len(num_tokens)
    assert receipt(num_tokens).num_tokens.tolist() == num_tokens
    assert packed_tokens(np.array(num_tokens, np.int64)) == packed


def test_packed_tokens_are_little_endian() -> None:
    assert packed_tokens([1, 258]) == b"\1\0\0\0\2\1\0\0"


def test_rows_are_those_with_tokens_and_samples_at_most_the_rows_of_a_prompt() -> None:
    one = receipt([5, 0, 1, 9])
    assert one.rows.tolist() == [True, False, True, True]
    assert one.num_samples(1) == 3
    assert one.num_samples(6) == 5 + 0 + 1 + 6


def test_it_knows_its_unit_and_its_files() -> None:
    one = receipt([5, 0, 1])
    assert one.of(4) == Unit("target", 3, 12, 15)
    assert one.output("target") == Output("target", "s/c/3", 90, 8, "b" * 64)
    assert one.output("tokens") is None


@pytest.mark.parametrize("num_tokens", [[], [5, 0, 1]])
def test_it_comes_back_from_its_sealed_bytes(num_tokens: list[int]) -> None:
    one = receipt(num_tokens)
    assert record.unseal(Receipt, record.seal(one)) == one
