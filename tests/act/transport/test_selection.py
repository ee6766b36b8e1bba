import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from act.errors import SelectionError
from act.transport import Selection, scores, select
from tests.laws import exact

#: Of three sites.
SCORES = [torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2.0, 2.0]), torch.tensor([0.0, 4.0, 5.0, 2.0])]
#: Past the tests' own type checker, as a person reaches it.
UNCHECKED: Any = inspect.unwrap(Selection.__post_init__)


def chosen(selection: Selection) -> list[list[int]]:
    return [mask.nonzero()[:, 0].tolist() for mask in select(selection, SCORES)]


def test_each_site_keeps_its_own_best_and_of_equals_the_first() -> None:
    assert chosen(Selection("w2", 1)) == [[1], [0], [2]]
    assert chosen(Selection("auroc", 2)) == [[1, 2], [0, 1], [1, 2]]


def test_the_model_keeps_the_best_of_all_and_of_equals_the_earlier_site() -> None:
    assert chosen(Selection("w2", 1, across="model")) == [[1], [], []]
    assert chosen(Selection("w2", 3, across="model")) == [[1], [], [1, 2]]
    assert chosen(Selection("w2", 5, across="model")) == [[1, 2], [0], [1, 2]]


def test_a_share_is_rounded_and_one_is_always_kept() -> None:
    assert chosen(Selection("w2", 0.5)) == [[1, 2], [0], [1, 2]]
    assert chosen(Selection("w2", 1e-9)) == [[1], [0], [2]]
    assert chosen(Selection("w2", 1.0)) == [[0, 1, 2], [0, 1], [0, 1, 2, 3]]
    assert chosen(Selection("w2", 2 / 9, across="model")) == [[1], [], [2]]


def test_more_than_there_are_is_all() -> None:
    assert chosen(Selection("w2", 100)) == chosen(Selection("w2", 1.0))


def test_sites_rank_by_root_mean_square_or_mean_and_are_kept_whole() -> None:
    # Root mean squares 3.42, 2, 3.35; means 3, 2, 2.75.
    assert chosen(Selection("w2", 1, of="sites")) == [[0, 1, 2], [], []]
    assert chosen(Selection("w2", 2, of="sites")) == [[0, 1, 2], [], [0, 1, 2, 3]]
    flat = [torch.tensor([0.0, 0.5]), torch.tensor([0.3, 0.3])]
    assert [bool(mask.all()) for mask in select(Selection("auroc", 1, of="sites"), flat)] == [False, True]
    assert [bool(mask.all()) for mask in select(Selection("w2", 1, of="sites"), flat)] == [True, False]


def test_sites_of_equal_scores_are_kept_from_the_first_and_large_ones_do_not_overflow() -> None:
    large = [torch.tensor([1e300], dtype=torch.float64), torch.tensor([3e300], dtype=torch.float64)]
    assert [bool(mask) for mask in select(Selection("w2", 1, of="sites"), large)] == [False, True]
    equal = [torch.zeros(2), torch.zeros(3), torch.zeros(1)]
    assert [bool(mask.all()) for mask in select(Selection("w2", 2, of="sites"), equal)] == [True, True, False]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 8) | st.floats(0.01, 1.0),
    st.sampled_from(["site", "model"]),
)
def test_what_is_kept_is_never_worse_than_what_is_not(values: list[list[int]], top: float, across: Any) -> None:
    sites = [torch.tensor(site, dtype=torch.float64) for site in values]
    masks = select(Selection("w2", top, across=across), sites)

    assert [len(mask) for mask in masks] == [len(site) for site in sites]
    groups = [(torch.cat(sites), torch.cat(masks))] if across == "model" else list(zip(sites, masks, strict=True))
    for of, mask in groups:
        number = top if isinstance(top, int) else max(1, round(top * len(of)))
        assert int(mask.sum()) == min(number, len(of))
        order = sorted(range(len(of)), key=lambda place: (-float(of[place]), place))
        assert mask.nonzero()[:, 0].tolist() == sorted(order[: int(number)])


def test_scores_are_the_distance_and_how_well_the_laws_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(30, 4)), generator.standard_t(3, size=(30, 4)) * [1, 2, 3, 0] + [0, 1, -9, 0]
    distance = np.sqrt(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean(0))
    area = np.array([stats.mannwhitneyu(x, y).statistic / 900 for x, y in zip(a.T, b.T, strict=True)])

    np.testing.assert_allclose(scores("w2", exact(a), exact(b)), distance, rtol=1e-9)
    np.testing.assert_allclose(scores("auroc", exact(a), exact(b)), np.abs(area - 0.5), atol=1e-15)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection("w2", 64), "top 64 neurons of each site by w2"),
        (Selection("auroc", 0.1, across="model"), "top 10% of neurons of the model by auroc"),
        (Selection("w2", 4, of="sites"), "top 4 sites by w2"),
        (Selection("w2", 0.25), "top 25% of neurons of each site by w2"),
    ],
)
def test_a_selection_says_what_it_is(selection: Selection, words: str) -> None:
    assert str(selection) == words


@pytest.mark.parametrize("top", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), True])
def test_a_top_that_is_none_is_refused(top: float) -> None:
    with pytest.raises(SelectionError, match="a whole number of at least 1, or a share above 0"):
        Selection("w2", top)


@pytest.mark.parametrize(("part", "value"), [("by", "w1"), ("of", "layers"), ("across", "layer")])
def test_words_that_are_none_are_refused(part: str, value: str) -> None:
    broken = Selection("w2", 1)
    object.__setattr__(broken, part, value)
    with pytest.raises(SelectionError, match=f"the selection's {part} '{value}'; wanted one of"):
        UNCHECKED(broken)
    with pytest.raises(SelectionError, match="wanted one of w2, auroc"):
        scores("w1", exact(np.zeros((2, 1))), exact(np.zeros((2, 1))))
