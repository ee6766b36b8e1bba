"""Single tokens of the source: what a pooled law does not know of its own activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from act.errors import EmptyMarginalError
from act.marginal import Marginal, check_finite

#: Values of single tokens that are kept, of all sites together: 64 MiB of float32.
TOKEN_BYTES = 64 << 20


@final
@dataclass(frozen=True, eq=False)
class TokenSample:
    """Single tokens as they came: what a support and a card ask of their law takes no sorting.

    Args:
        values: `[tokens, neurons]`, finite, in no order, at least one.
        low: Smallest of each neuron, `[neurons]`.
        high: Largest of each neuron, `[neurons]`.
    """

    values: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @property
    def num_samples(self) -> int:
        """Number of tokens."""
        return len(self.values)

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.values.shape[1]

    def share(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Returns the share of each neuron's tokens that lie in ``[low, high]``, ends included, `[neurons]`, float64.

        Args:
            low: `[neurons]`.
            high: `[neurons]`, none below `low`.
        """
        inside = self.values.clamp(low, high).eq_(self.values)
        return inside.sum(dim=0, dtype=torch.float64) / len(inside)


#: What is known of single tokens: a law, or some of them.
TokenLaw = Marginal | TokenSample


@final
class TokenLaws:
    """Collects the law of single tokens at each site: its extremes from all of them, the rest from the first.

    A `act.capture.Sink`. It keeps the first tokens that come, as many at each site, up to a number of bytes in all.

    Args:
        widths: Number of neurons of each site.
        most_bytes: Bytes of float32 that the values kept may take, of all sites together.
    """

    def __init__(self, widths: Sequence[int], most_bytes: int = TOKEN_BYTES) -> None:
        self._most = max(1, most_bytes // (4 * sum(widths)))
        self._kept: list[list[torch.Tensor]] = [[] for _ in widths]
        self._num_kept, self._num_tokens = [0] * len(widths), [0] * len(widths)
        self._lows = [torch.full((width,), torch.inf) for width in widths]
        self._highs = [torch.full((width,), -torch.inf) for width in widths]

    def __call__(self, site: int, tokens: torch.Tensor) -> None:
        """Adds tokens of a site.

        Args:
            site: Number of the site.
            tokens: `[tokens, neurons]`.

        Raises:
            NotFiniteError: Some value is NaN or infinite.
        """
        tokens = tokens.detach().cpu()
        check_finite("the tokens of a site", tokens)
        self._lows[site] = torch.minimum(self._lows[site], tokens.amin(dim=0))
        self._highs[site] = torch.maximum(self._highs[site], tokens.amax(dim=0))
        self._num_tokens[site] += len(tokens)
        room = self._most - self._num_kept[site]
        if room > 0:
            self._kept[site].append(tokens[:room].clone())
            self._num_kept[site] += len(self._kept[site][-1])

    def law(self, site: int) -> TokenSample:
        """Returns the single tokens kept of a site.

        The extremes are those of all tokens: where not all were kept, they are added as two tokens more.

        Raises:
            EmptyMarginalError: There were no tokens.
        """
        low, high = self._lows[site], self._highs[site]
        if not (low <= high).all():
            raise EmptyMarginalError(len(low))
        extremes = [] if self._num_tokens[site] == self._num_kept[site] else [low[None], high[None]]
        return TokenSample(torch.cat([*self._kept[site], *extremes]), low, high)
