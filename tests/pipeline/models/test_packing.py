import pytest

from pipeline.models.packing import fill, pad, padded, position_limit
from tests.architectures import CONFIGS


@pytest.mark.parametrize(
    ("length", "limit", "width"),
    [(1, None, 16), (16, None, 16), (17, None, 32), (17, 20, 20), (20, 20, 20), (16, 20, 16), (17, 32, 32), (3, 5, 5)],
)
def test_widths_are_multiples_of_sixteen_up_to_the_last_position(length: int, limit: int | None, width: int):
    assert padded(length, limit) == width


@pytest.mark.parametrize(("kind", "limit"), [("gpt2", 64), ("llama", 64), ("opt", 64), ("bloom", None)])
def test_a_model_has_the_positions_that_its_configuration_names(kind: str, limit: int | None):
    assert position_limit(CONFIGS[kind]) == limit


def test_batches_hold_as_many_rows_as_fit_at_the_width_of_the_longest():
    assert fill([2, 0, 1], [16, 32, 16], 64) == [[2, 0], [1]]
    assert fill([0], [128], 64) == [[0]]
    assert fill([], [], 64) == []


def test_tokens_are_padded_on_the_right():
    ids, mask = pad([[1, 2, 3], [4]], 4, 9)
    assert ids.tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
