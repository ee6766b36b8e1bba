"""Pooling: how the real tokens of a prompt become its sample."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final, get_args

import torch

from act.errors import EmptyRowError, ShapeError, UnknownPoolingError
from act.marginal import ascending

Pooling = Literal["mean", "max", "min", "median", "last", "all"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@final
@dataclass(frozen=True, eq=False)
class TokenSpans:
    """The real tokens of a batch; the others are padding.

    Built by `from_mask` or `full`.

    Args:
        mask: True where a token is real, `[batch, tokens]`, bool.
        rows: Where the real tokens of each row are: a slice if they are contiguous, else their places.
    """

    mask: torch.Tensor
    rows: tuple[slice | torch.Tensor, ...]

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> "TokenSpans":
        """Returns the tokens that a mask marks as real.

        Args:
            mask: Nonzero where a token is real, `[batch, tokens]`: what a tokenizer calls the attention mask.

        Raises:
            ShapeError: The mask has not two axes.
            EmptyRowError: A row has no real token.
        """
        if mask.ndim != 2:
            raise ShapeError("the mask", mask.shape, "two axes, [batch, tokens]")
        mask = mask.bool()
        return cls(mask, tuple(_span(row, number) for number, row in enumerate(mask.cpu())))

    @classmethod
    def full(cls, batch: int, tokens: int) -> "TokenSpans":
        """Returns a batch in which every token is real."""
        return cls.from_mask(torch.ones(batch, tokens, dtype=torch.bool))

    @cached_property
    def runs(self) -> tuple[tuple[slice, slice | torch.Tensor], ...]:
        """Rows next to one another whose real tokens are at the same contiguous places, and these places.

        A row whose real tokens are not contiguous stands alone.
        """
        found: list[tuple[slice, slice | torch.Tensor]] = []
        for row, span in enumerate(self.rows):
            if found and isinstance(span, slice) and found[-1][1] == span:
                found[-1] = slice(found[-1][0].start, row + 1), span
            else:
                found.append((slice(row, row + 1), span))
        return tuple(found)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of real tokens of each row."""
        return tuple(row.stop - row.start if isinstance(row, slice) else len(row) for row in self.rows)

    @property
    def lasts(self) -> tuple[int, ...]:
        """Place of the last real token of each row."""
        return tuple(row.stop - 1 if isinstance(row, slice) else int(row[-1]) for row in self.rows)

    def to(self, device: torch.device | str) -> "TokenSpans":
        """Returns the same tokens with the mask on a device, so that pooling there copies it once a batch."""
        return TokenSpans(self.mask.to(device), self.rows)


def pool(pooling: Pooling, activation: torch.Tensor, spans: TokenSpans) -> torch.Tensor:
    """Returns one sample a row, `[batch, neurons]`; with ``all`` one a real token, `[samples, neurons]`, in row order.

    Padding never counts. The result is float32 (float64 for a float64 activation), accumulates in that dtype, shares
    no memory with the activation and carries no gradient. Non-finite values of real tokens reach it.

    On a CPU rows are pooled from slices: nothing of the activation's size is copied, and equal real tokens give equal
    bits whatever their padding or neighbours. Elsewhere, where a kernel a slice is slow, the batch is reduced at once
    under its mask.

    Args:
        pooling: ``median`` is the mean of the two middle values when the count is even, as in NumPy.
        activation: `[batch, tokens, neurons]`, floating point.
        spans: The real tokens.

    Raises:
        ShapeError: The activation has other rows or tokens than the spans.
        UnknownPoolingError: There is no such pooling.
    """
    if pooling not in POOLINGS:
        raise UnknownPoolingError(pooling, POOLINGS)
    if activation.ndim != 3 or activation.shape[:2] != spans.mask.shape:
        batch, tokens = spans.mask.shape
        raise ShapeError("the activation", activation.shape, f"[{batch}, {tokens}, neurons], as the mask says")
    by = pool_rows if activation.device.type == "cpu" else pool_masked
    return by(pooling, activation.detach(), spans)


def pool_rows(pooling: Pooling, activation: torch.Tensor, spans: TokenSpans) -> torch.Tensor:
    """Returns what `pool` returns, by one reduction over a view of the real tokens of rows that have them alike.

    A row's bits do not depend on how many are reduced with it.
    """
    num_samples = sum(spans.counts) if pooling == "all" else len(spans.rows)
    pooled = activation.new_empty(num_samples, activation.shape[2], dtype=_wide(activation))
    start = 0
    for rows, span in spans.runs:
        real = activation[rows, span]
        num_rows, num_tokens, _ = real.shape
        into = pooled[start : start + (num_rows * num_tokens if pooling == "all" else num_rows)]
        start += len(into)
        match pooling:
            case "mean":
                _sum(real, into)
            case "max":
                into.copy_(real.amax(dim=1))
            case "min":
                into.copy_(real.amin(dim=1))
            case "median":
                into.copy_(torch.stack([_median(row) for row in real]))
            case "last":
                into.copy_(real[:, -1])
            case "all":
                into.view(real.shape).copy_(real)
    return pooled.div_(torch.tensor(spans.counts)[:, None]) if pooling == "mean" else pooled


def pool_masked(pooling: Pooling, activation: torch.Tensor, spans: TokenSpans) -> torch.Tensor:
    """Returns what `pool` returns, sums up to rounding, by reductions of the whole batch under its mask."""
    mask, dtype = spans.mask.to(activation.device), _wide(activation)
    real = mask[:, :, None]
    match pooling:
        case "mean":
            total = torch.where(real, activation, 0.0).sum(dim=1, dtype=dtype)
            return total / real.sum(dim=1)
        case "max":
            return torch.where(real, activation, -torch.inf).amax(dim=1).to(dtype)
        case "min":
            return torch.where(real, activation, torch.inf).amin(dim=1).to(dtype)
        case "median":
            return _masked_median(torch.where(real, activation, torch.inf).to(dtype), real.sum(dim=1, keepdim=True))
        case "last":
            lasts = torch.tensor(spans.lasts, device=activation.device)
            return activation[torch.arange(len(lasts), device=activation.device), lasts].to(dtype)
        case "all":
            return activation[mask].to(dtype)


def as_tokens(output: torch.Tensor) -> torch.Tensor:
    """Returns a module's output as `[batch, tokens, neurons]`: a view wherever the layout permits.

    Args:
        output: `[batch, tokens, neurons]` as it is; `[batch, neurons]` is one token; the pixels of
            `[batch, channels, height, width]` are tokens and its channels neurons.

    Raises:
        ShapeError: It has other axes.
    """
    match output.ndim:
        case 2:
            return output[:, None]
        case 3:
            return output
        case 4:
            return output.flatten(2).transpose(1, 2)
    raise _no_neurons(output)


def channel_axis(output: torch.Tensor) -> int:
    """Returns which axis of a module's output counts its neurons: 1 of four axes, the last of two or three.

    Raises:
        ShapeError: It has other axes.
    """
    if output.ndim not in (2, 3, 4):
        raise _no_neurons(output)
    return 1 if output.ndim == 4 else -1


def _no_neurons(output: torch.Tensor) -> ShapeError:
    wanted = "[batch, neurons], [batch, tokens, neurons] or [batch, channels, height, width]"
    return ShapeError("a module's output", output.shape, wanted)


def _span(row: torch.Tensor, number: int) -> slice | torch.Tensor:
    places = row.nonzero()[:, 0]
    if not len(places):
        raise EmptyRowError(number)
    start, stop = int(places[0]), int(places[-1]) + 1
    return slice(start, stop) if stop - start == len(places) else places


def _wide(activation: torch.Tensor) -> torch.dtype:
    return torch.float64 if activation.dtype == torch.float64 else torch.float32


def _sum(real: torch.Tensor, into: torch.Tensor) -> None:
    """Sums over tokens, `[rows, tokens, neurons]`.

    A row at a time where its bits could depend on the others, for torch adds in the order of the strides; and in
    another dtype, for all that is summed is copied to it.
    """
    per_row, per_token, per_neuron = real.stride()
    in_order = per_row >= per_token * real.shape[1] and per_token >= real.shape[2] and per_neuron == 1
    if in_order and real.dtype == into.dtype:
        into.copy_(real.sum(dim=1))
        return
    for row, sums in zip(real, into, strict=True):
        sums.copy_(row.sum(dim=0, dtype=into.dtype))


def _median(real: torch.Tensor) -> torch.Tensor:
    """NumPy's median over tokens, `[tokens, neurons]` to `[neurons]`: NaN wherever there is one (they sort last)."""
    ordered, count = ascending(real), len(real)
    middle = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    return torch.where(ordered[:, -1].isnan(), ordered[:, -1], middle)


def _masked_median(padded: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The same over a batch, `[batch, tokens, neurons]`, whose padding is infinite; `counts` is `[batch, 1, 1]`."""
    ordered = padded.sort(dim=1).values
    shape = (-1, -1, padded.shape[2])
    lower = ordered.gather(1, ((counts - 1) // 2).expand(shape))[:, 0]
    upper = ordered.gather(1, (counts // 2).expand(shape))[:, 0]
    return torch.where(ordered[:, -1].isnan(), ordered[:, -1], (lower + upper) / 2)
