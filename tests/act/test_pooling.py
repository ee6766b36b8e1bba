import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from act.errors import EmptyRowError, ShapeError, UnknownPoolingError
from act.pooling import POOLINGS, Pooling, TokenSpans, as_tokens, channel_axis, pool, pool_masked, pool_rows

MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1],  # full
        [1, 1, 1, 0, 0, 0, 0],  # right-padded
        [0, 0, 0, 1, 1, 1, 1],  # left-padded
        [0, 1, 0, 1, 1, 0, 0],  # gappy
        [0, 0, 0, 0, 0, 1, 0],  # one token
    ]
)
ACTIVATION = torch.randn(5, 7, 33, generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("by", [pool_rows, pool_masked])
EACH = pytest.mark.parametrize("pooling", POOLINGS)
NUMPY = {
    "mean": lambda real: real.mean(0),
    "max": lambda real: real.max(0),
    "min": lambda real: real.min(0),
    "median": lambda real: np.median(real, 0),
    "last": lambda real: real[-1],
    "all": lambda real: real,
}


def oracle(pooling: str, activation: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    rows = activation.double().numpy()
    pooled = [NUMPY[pooling](row[real]) for row, real in zip(rows, mask.bool().numpy(), strict=True)]
    return np.concatenate(pooled) if pooling == "all" else np.stack(pooled)


@BOTH
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_poolings_agree_with_numpy(by, pooling: Pooling, dtype: torch.dtype) -> None:
    activation = ACTIVATION.to(dtype)

    found = by(pooling, activation, TokenSpans.from_mask(MASK))

    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(found.numpy(), oracle(pooling, activation, MASK), rtol=1e-6, atol=1e-6)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_agree(pooling: Pooling, dtype: torch.dtype) -> None:
    activation, spans = ACTIVATION.to(dtype), TokenSpans.from_mask(MASK)
    rows, masked = pool_rows(pooling, activation, spans), pool_masked(pooling, activation, spans)

    if pooling == "mean":
        torch.testing.assert_close(masked, rows, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(masked, rows)


@given(st.data())
@pytest.mark.parametrize("pooling", POOLINGS)
def test_both_ways_agree_under_any_mask(pooling: Pooling, data: st.DataObject) -> None:
    row = st.lists(st.booleans(), min_size=7, max_size=7).filter(any)
    mask = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=5)))
    activation, spans = ACTIVATION[: len(mask)], TokenSpans.from_mask(mask)

    for by in (pool_rows, pool_masked):
        np.testing.assert_allclose(
            by(pooling, activation, spans), oracle(pooling, activation, mask), rtol=1e-6, atol=1e-6
        )
    assert spans.counts == tuple(mask.sum(1).tolist())


@EACH
@pytest.mark.parametrize("count", [1, 2, 3, 17, 100, 255])
def test_padding_and_neighbours_never_change_bits(pooling: Pooling, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    real = torch.randn(count, 577, generator=generator) * 10
    alone = pool(pooling, real[None], TokenSpans.full(1, count))

    together = pool(pooling, torch.stack([real, real * 2, real]), TokenSpans.full(3, count))
    assert torch.equal(together[-len(alone) :], alone)
    assert torch.equal(together[: len(alone)], alone)

    tokens_first = torch.stack([real, real * 2, real], dim=1).transpose(0, 1)
    expanded = real[None].expand(3, -1, -1)
    for activation in (tokens_first, expanded, tokens_first.mT.contiguous().mT):
        alike = pool(pooling, activation, TokenSpans.full(3, count))
        for row in range(3):
            lone = pool(pooling, activation[row : row + 1], TokenSpans.full(1, count))
            assert torch.equal(alike[row * len(lone) : (row + 1) * len(lone)], lone)

    for left, right, row, batch in [(0, 5, 0, 2), (7, 0, 1, 3), (3, 9, 2, 3), (1, 0, 0, 1)]:
        activation = torch.full((batch, left + count + right, 577), 1e30)
        activation[row, left : left + count] = real
        mask = torch.zeros(batch, left + count + right, dtype=torch.long)
        mask[:, 0] = 1
        mask[row] = 0
        mask[row, left : left + count] = 1
        pooled = pool(pooling, activation, TokenSpans.from_mask(mask))
        start = row if pooling == "all" else 0
        mine = pooled[start : start + count] if pooling == "all" else pooled[row : row + 1]
        assert torch.equal(mine, alone)


@BOTH
@EACH
def test_what_padding_holds_never_counts(by, pooling: Pooling) -> None:
    spans = TokenSpans.from_mask(MASK)
    expected = by(pooling, ACTIVATION, spans)

    for filler in (torch.nan, torch.inf, -torch.inf):
        padded = torch.where(spans.mask[:, :, None], ACTIVATION, filler)
        assert torch.equal(by(pooling, padded, spans), expected)


@BOTH
@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling not in ("last", "all")])
def test_a_real_token_that_is_nan_is_not_hidden(by, pooling: Pooling) -> None:
    activation = ACTIVATION.clone()
    activation[1, 0, 4] = torch.nan

    found = by(pooling, activation, TokenSpans.from_mask(MASK))

    assert found.isnan().nonzero().tolist() == [[1, 4]]


@BOTH
@EACH
def test_the_activation_is_neither_written_nor_shared(by, pooling: Pooling) -> None:
    for activation, spans in [(ACTIVATION.clone(), TokenSpans.from_mask(MASK)), (ACTIVATION[:1, :1].clone(), None)]:
        before = activation.clone()
        pooled = by(pooling, activation, spans or TokenSpans.full(1, 1))
        assert torch.equal(activation, before)
        assert pooled.untyped_storage().data_ptr() != activation.untyped_storage().data_ptr()
        assert pooled.untyped_storage().nbytes() == pooled.numel() * 4


@EACH
def test_no_gradient_is_carried(pooling: Pooling) -> None:
    activation = ACTIVATION.clone().requires_grad_()

    assert not pool(pooling, activation, TokenSpans.from_mask(MASK)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling != "all"])
def test_on_a_cpu_no_copy_of_the_activation_is_made(pooling: Pooling, dtype: torch.dtype) -> None:
    activation = torch.randn(16, 64, 128).to(dtype)
    spans = TokenSpans.full(16, 64)

    assert largest_allocation(pool_masked, pooling, activation, spans) >= activation.nbytes or pooling == "last"
    # A row in float32 at most.
    assert largest_allocation(pool, pooling, activation, spans) <= activation.numel() * 4 / 16


def largest_allocation(by, pooling: Pooling, activation: torch.Tensor, spans: TokenSpans) -> int:
    """Bytes of the operation that allocates most."""
    by(pooling, activation, spans)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        by(pooling, activation, spans)
    return max(event.self_cpu_memory_usage for event in seen.events())


def test_full_spans_and_a_full_mask_are_one() -> None:
    full, masked = TokenSpans.full(3, 4), TokenSpans.from_mask(torch.ones(3, 4))

    assert full.rows == masked.rows == (slice(0, 4),) * 3
    assert torch.equal(full.mask, masked.mask)


def test_contiguous_rows_are_slices_and_gappy_ones_places() -> None:
    *contiguous, gappy, one = TokenSpans.from_mask(MASK).rows

    assert contiguous == [slice(0, 7), slice(0, 3), slice(3, 7)]
    assert isinstance(gappy, torch.Tensor)
    assert gappy.tolist() == [1, 3, 4]
    assert one == slice(5, 6)


def test_counts_and_lasts() -> None:
    spans = TokenSpans.from_mask(MASK)

    assert spans.counts == (7, 3, 4, 3, 1)
    assert spans.lasts == (6, 2, 6, 4, 5)


def test_spans_move_their_mask_to_a_device() -> None:
    spans = TokenSpans.from_mask(MASK).to("meta")

    assert spans.mask.device.type == "meta"
    assert spans.counts == (7, 3, 4, 3, 1)


def test_a_row_without_a_real_token_is_refused_by_its_number() -> None:
    with pytest.raises(EmptyRowError, match="row 1 of the mask"):
        TokenSpans.from_mask(torch.tensor([[1, 0], [0, 0]]))


def test_a_mask_with_other_axes_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"the mask has the shape \[4\]; wanted two axes"):
        TokenSpans.from_mask(torch.ones(4))


@pytest.mark.parametrize("shape", [(5, 6, 33), (4, 7, 33), (5, 7), (5, 7, 3, 3)])
def test_an_activation_that_does_not_fit_the_mask_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"wanted \[5, 7, neurons\], as the mask says"):
        pool("mean", torch.zeros(shape), TokenSpans.from_mask(MASK))


def test_an_unknown_pooling_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownPoolingError, match="did you mean 'median'"):
        inspect.unwrap(pool)("medain", ACTIVATION, TokenSpans.from_mask(MASK))  # past the tests' own type checker


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3), (2, 3, 4, 6)])
def test_tokens_and_neurons_of_an_output(shape: tuple[int, ...]) -> None:
    output = torch.arange(torch.Size(shape).numel()).reshape(shape)
    tokens = as_tokens(output)

    assert tokens.shape[0] == 2
    assert tokens.shape[2] == output.shape[channel_axis(output)] == 3
    assert torch.equal(tokens, output.movedim(channel_axis(output), -1).reshape(tokens.shape))
    assert tokens.data_ptr() == output.data_ptr()


def test_pixels_in_channels_last_layout_are_a_view_too() -> None:
    output = torch.randn(2, 3, 4, 6).to(memory_format=torch.channels_last)

    assert as_tokens(output).data_ptr() == output.data_ptr()
    np.testing.assert_allclose(
        pool("mean", as_tokens(output), TokenSpans.full(2, 24)), output.double().mean((2, 3)), rtol=1e-5, atol=1e-6
    )


def test_pooling_pixels_copies_no_activation() -> None:
    output = torch.randn(8, 32, 16, 16)

    assert largest_allocation(pool, "mean", as_tokens(output), TokenSpans.full(8, 256)) <= output.nbytes / 8


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_an_output_without_an_axis_of_neurons_is_refused(shape: tuple[int, ...]) -> None:
    for look in (as_tokens, channel_axis):
        with pytest.raises(ShapeError, match="a module's output"):
            look(torch.zeros(shape))
