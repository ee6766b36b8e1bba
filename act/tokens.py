"""Single tokens of the source: what a pooled law does not know of its own activations."""

from collections.abc import Sequence
from typing import final

import torch

from act.marginal import Marginal, check_finite

#: Values of single tokens that are kept, of all sites together: 64 MiB of float32.
TOKEN_BYTES = 64 << 20


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
        self._num_kept = [0] * len(widths)
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
        room = self._most - self._num_kept[site]
        if room > 0:
            self._kept[site].append(tokens[:room].clone())
            self._num_kept[site] += len(self._kept[site][-1])

    def law(self, site: int) -> Marginal:
        """Returns the law of single tokens at a site.

        Its extremes are those of all tokens: where not all were kept, they are added as two tokens more.

        Raises:
            EmptyMarginalError: There were no tokens.
        """
        kept = torch.cat(self._kept[site]) if self._kept[site] else self._lows[site].new_empty(0, len(self._lows[site]))
        low, high = self._lows[site], self._highs[site]
        whole = len(kept) == 0 or (torch.equal(kept.amin(dim=0), low) and torch.equal(kept.amax(dim=0), high))
        return Marginal.from_samples(kept if whole else torch.cat([kept, low[None], high[None]]))
