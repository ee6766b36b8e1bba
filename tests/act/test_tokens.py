import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.errors import EmptyMarginalError, NotFiniteError
from act.marginal import Marginal
from act.tokens import TokenLaws


def batches(num: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """Tokens in batches of at most 3, `[tokens, width]` each."""
    return list(torch.randn(num, width, generator=torch.Generator().manual_seed(seed)).split(3))


def test_with_room_it_is_the_law_of_all_tokens() -> None:
    laws, parts = TokenLaws([3, 5]), (batches(20, 3), batches(20, 5, 1))
    for site in (0, 1):
        for part in parts[site]:
            laws(site, part)

    for site in (0, 1):
        law, tokens = laws.law(site), torch.cat(parts[site])
        assert torch.equal(law.values, tokens)
        assert torch.equal(law.low, tokens.amin(0))
        assert torch.equal(law.high, tokens.amax(0))


@given(st.integers(1, 40), st.integers(1, 40))
def test_past_the_room_the_first_tokens_are_kept_and_the_extremes_of_all(num: int, room: int) -> None:
    laws, parts = TokenLaws([2, 3], most_bytes=4 * 5 * room + 3), batches(num, 3)
    for part in parts:
        laws(1, part)
    tokens, law = torch.cat(parts), laws.law(1)

    assert torch.equal(law.low, tokens.amin(0))
    assert torch.equal(law.high, tokens.amax(0))
    assert law.num_samples == (num if num <= room else room + 2)
    assert torch.equal(law.values[:room], tokens[:room])
    assert torch.equal(law.values[room:], torch.stack([law.low, law.high])[: law.num_samples - min(num, room)])


@given(st.lists(st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.1, 3.5]), min_size=3, max_size=3), min_size=1))
def test_shares_are_those_of_the_law_of_the_same_tokens(rows: list[list[float]]) -> None:
    tokens = torch.tensor(rows)
    laws = TokenLaws([3])
    laws(0, tokens)
    law, sorted_law = laws.law(0), Marginal.from_samples(tokens)

    assert (law.num_samples, law.num_neurons) == (sorted_law.num_samples, sorted_law.num_neurons)
    ends = [-torch.inf, -3.0, -0.0, 0.0, 0.1, 3.5, torch.inf]
    for low, high in itertools.combinations_with_replacement(ends, 2):
        interval = torch.full((3,), low), torch.full((3,), high)
        inside = (tokens >= low) & (tokens <= high)
        assert torch.equal(law.share(*interval), inside.double().mean(dim=0))
        torch.testing.assert_close(sorted_law.share(*interval), law.share(*interval))


def test_one_token_is_kept_however_small_the_room() -> None:
    laws = TokenLaws([4], most_bytes=0)
    laws(0, torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 9.0, 3.0, 4.0]]))

    assert laws.law(0).values.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 3.0, 4.0], [1.0, 9.0, 3.0, 4.0]]


def test_what_is_kept_is_a_copy() -> None:
    laws, tokens = TokenLaws([2]), torch.ones(3, 2)
    laws(0, tokens)
    tokens.fill_(7.0)

    assert laws.law(0).high.tolist() == [1.0, 1.0]


def test_tokens_that_are_not_finite_are_counted_and_the_first_neuron_named() -> None:
    laws = TokenLaws([3])
    with pytest.raises(NotFiniteError, match="holds 2 values that are not finite, first at neuron 1"):
        laws(0, torch.tensor([[0.0, torch.nan, 0.0], [0.0, 0.0, torch.inf]]))


def test_no_tokens_are_no_law() -> None:
    with pytest.raises(EmptyMarginalError):
        TokenLaws([3]).law(0)
