"""The law of each neuron's activation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch

from act.cells import cells_of_samples
from act.errors import EmptyMarginalError, NotFiniteError, ProbabilityError, ShapeError

#: Numbers in one float64 work tensor: 32 MiB, whatever the number of samples and neurons.
WORK_SIZE = 1 << 22

#: Rounding of one float64 operation, relative.
UNIT_ROUNDOFF = 2.0**-53


@final
@dataclass(frozen=True, eq=False)
class Marginal:
    """The empirical law of each neuron's activation, one neuron apart from the others.

    A law is a run of ascending cells that do not overlap, each with a counted number of samples. A sample is a cell of
    no width. Built by `from_samples`, which keeps every sample, or by `from_cells`, which knows only the counts; what
    the second cannot know it bounds.

    Args:
        lows: Lower end of each cell, `[neurons, cells]`, float32 or float64.
        highs: Upper end of each cell, in the shape and dtype of `lows`; ``highs[k] <= lows[k + 1]``. The same tensor
            as `lows` where the law keeps its samples.
        ends: Samples in each cell and all cells before it, `[neurons, cells]` or `[1, cells]` for all neurons alike,
            int64; the last is the number of samples, the same for every neuron.
        mean: Mean of each neuron, `[neurons]`, float64.
        variance: Population variance of each neuron, `[neurons]`, float64.
        mean_error: How far the mean of the samples is from `mean` at most, `[neurons]`, float64.
        deviation_error: How far the standard deviation of the samples is from ``sqrt(variance)`` at most,
            `[neurons]`, float64.
        edge_error: How far a sample lies outside a cell that has width at most, `[neurons]`, float64.
    """

    lows: torch.Tensor
    highs: torch.Tensor
    ends: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    mean_error: torch.Tensor
    deviation_error: torch.Tensor
    edge_error: torch.Tensor

    @classmethod
    def from_samples(cls, samples: torch.Tensor) -> "Marginal":
        """Returns the law that gives each sample the same weight. Its moments are exact up to float64 rounding.

        Args:
            samples: `[samples, neurons]`, finite. float64 is kept; anything else becomes float32.

        Raises:
            ShapeError: It has not two axes.
            EmptyMarginalError: There are no samples.
            NotFiniteError: Some value is NaN or infinite.
        """
        if samples.ndim != 2:
            raise ShapeError("the tensor of samples", samples.shape, "two axes, [samples, neurons]")
        if not samples.shape[0]:
            raise EmptyMarginalError(samples.shape[1])
        check_finite("the tensor of samples", samples)
        columns = ascending(samples.detach())
        ends = torch.arange(1, samples.shape[0] + 1, device=columns.device)[None]
        mean, variance = _moments(columns)
        return cls(columns, columns, ends, mean, variance, *(torch.zeros_like(mean) for _ in range(3)))

    @classmethod
    def from_cells(
        cls,
        lows: torch.Tensor,
        highs: torch.Tensor,
        counts: torch.Tensor,
        *,
        mean: torch.Tensor,
        variance: torch.Tensor,
        mean_error: torch.Tensor,
        deviation_error: torch.Tensor,
        edge_error: torch.Tensor,
    ) -> "Marginal":
        """Returns the law of samples of which only the cells are known.

        The smallest sample is the first cell's lower end and the largest is the last cell's upper end, both exactly:
        so the law gets a cell of no width for each, with one sample taken from the cell that holds it. Inside a cell
        samples are taken to lie at even distances.

        Args:
            lows: Lower end of each cell, `[neurons, cells]`, finite, float32 or float64.
            highs: Upper end of each cell, the same; no cell begins before the one before it ends.
            counts: Samples in each cell, `[neurons, cells]`, int64, as many in all for every neuron. The first cell
                holds some. Cells after the last that holds some are padding, their ends are not looked at.
            mean: Mean of each neuron's samples, `[neurons]`, float64.
            variance: Their population variance, `[neurons]`, float64.
            mean_error: Bound on the error of `mean`, `[neurons]`, float64.
            deviation_error: Bound on the error of ``sqrt(variance)``, `[neurons]`, float64.
            edge_error: How far a sample lies outside a cell that has width at most, `[neurons]`, float64. Samples in a
                cell of no width have its value exactly. No sample is below one of a cell before its own.

        Raises:
            ShapeError: The shapes do not belong together, or there are no neurons or cells.
            EmptyMarginalError: The cells hold no samples.
            CellsError: Some neuron's cells are no law.
        """
        vectors = (mean, variance, mean_error, deviation_error, edge_error)
        return cls(*cells_of_samples(lows, highs, counts, vectors), *vectors)

    @property
    def num_samples(self) -> int:
        """Number of samples that the law rests on."""
        return int(self.ends[0, -1])

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.lows.shape[0]

    @property
    def low(self) -> torch.Tensor:
        """Smallest sample of each neuron, `[neurons]`, in the dtype of the cells."""
        return self.lows[:, 0]

    @property
    def high(self) -> torch.Tensor:
        """Largest sample of each neuron, `[neurons]`, in the dtype of the cells."""
        return self.highs[:, -1]

    @property
    def is_exact(self) -> bool:
        """Whether the law keeps every sample."""
        return self.lows is self.highs

    @cached_property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of each neuron, `[neurons]`, float64, positive where a law of cells has two extremes.

        For a law of cells it is confined to what the extremes allow, see `deviation_bounds`.
        """
        return self.variance.sqrt() if self.is_exact else self._confined(self.variance.sqrt())

    @cached_property
    def deviation_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the standard deviation of the samples is at least and at most, both `[neurons]`, float64.

        One sample lies at either extreme, so it is at least ``range / sqrt(2 n)``; and at most half the range
        (Popoviciu, 1935).
        """
        found = self.variance.sqrt()
        if self.is_exact:
            return found, found
        return self._confined(found - self.deviation_error), self._confined(found + self.deviation_error)

    @cached_property
    def rank_error(self) -> torch.Tensor:
        """Largest share of one cell that has width, `[neurons]`, float64: how far a rank can be off. 0 for samples."""
        if self.is_exact:
            return torch.zeros_like(self.mean)
        counts = self.ends.diff(dim=1, prepend=torch.zeros_like(self.ends[:, :1]))
        return counts.where(self.lows < self.highs, 0).amax(dim=1).double() / self.num_samples

    def expect(self, function: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """Returns the mean of a function of the activation over the law of each neuron, `[neurons]`, float64.

        A cell counts as its middle.

        Args:
            function: Takes the values of some neurons, `[neurons, cells]` in float64, and which neurons these are,
                and returns as many values without writing to its input. It is called on blocks of neurons, so that
                memory stays bounded.
        """
        means = torch.empty_like(self.mean)
        for neurons in blocks(self.num_neurons, self.lows.shape[1]):
            values = function(self._middles(neurons), neurons).double()
            if self.is_exact:
                means[neurons] = values.mean(dim=1)
            else:
                counts = self.ends[neurons].diff(dim=1, prepend=torch.zeros_like(self.ends[neurons, :1]))
                means[neurons] = total(values * counts) / self.num_samples
        return means

    def quantile(self, probs: torch.Tensor) -> torch.Tensor:
        """Returns quantiles of each neuron, `[probs, neurons]`, float64, linear between samples as in NumPy.

        In a cell that holds the samples with the ranks ``s … s + c - 1``, counted from 0, that with the rank ``k`` is
        taken to lie at ``low + (k - s + 1/2) / c * (high - low)``.

        Args:
            probs: Probabilities from 0 to 1, `[probs]`.

        Raises:
            ProbabilityError: Some probability lies outside [0, 1].
        """
        below, above, weight = self._ranks(probs)
        return torch.lerp(self._sample(below), self._sample(above), weight).t()

    def quantile_bounds(self, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what NumPy's linear quantiles of the samples are at least and at most, both as `quantile` does.

        Raises:
            ProbabilityError: Some probability lies outside [0, 1].
        """
        if self.is_exact:
            exact = self.quantile(probs)
            return exact, exact
        below, above, weight = self._ranks(probs)
        left, right = self._cell(below), self._cell(above)
        lower, upper = (torch.lerp(ends.gather(1, left), ends.gather(1, right), weight).t() for ends in self.reach())
        # A line between two numbers takes three operations, here and in NumPy.
        slack = 8 * UNIT_ROUNDOFF * self.low.abs().maximum(self.high.abs()).double()
        return lower - slack, upper + slack

    def cdf(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the share of each neuron's samples that are at most `x`, in the shape of `x`, float64.

        It rises linearly inside a cell, and jumps at a cell of no width.

        Args:
            x: `[neurons]`, or several values of each neuron, `[samples, neurons]`.
        """
        return self._share(x, "right")

    def cdf_below(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the share of each neuron's samples that are less than `x`, as `cdf` does."""
        return self._share(x, "left")

    def share(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Returns the share of each neuron's samples that lie in ``[low, high]``, ends included, `[neurons]`, float64.

        Args:
            low: `[neurons]`.
            high: `[neurons]`, none below `low`.
        """
        return self.cdf(high) - self.cdf_below(low)

    def cdf_bounds(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what the share of samples that are at most `x` is at least and at most, both as `cdf` does."""
        if self.is_exact:
            exact = self.cdf(x)
            return exact, exact
        wanted = self._wanted(x, torch.float64)
        least, most = (
            self._samples_before(torch.searchsorted(ends, wanted, right=True)).double() / self.num_samples
            for ends in reversed(self.reach())
        )
        return least.t().reshape(x.shape), most.t().reshape(x.shape)

    def reach(self, neurons: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns between which values the samples of each cell lie, both `[neurons, cells]`, float64.

        That is the cell, on either side wider by `edge_error`, and no wider than all samples. A cell of no width is an
        atom: its samples have its value exactly, so those of cells before and after it lie on that side of it. Both
        ascend.
        """
        lows = self.lows[neurons].double()
        if self.is_exact:
            return lows, lows
        highs, error = self.highs[neurons].double(), self.edge_error[neurons, None]
        low, high = lows[:, :1], highs[:, -1:]
        # Wider by the rounding of the sums too, so that the ends are outside whatever they round to.
        wider = (error + 2 * UNIT_ROUNDOFF * low.abs().maximum(high.abs())) * (1 + 2.0**-50)
        wider = wider.where((error > 0) & (lows < highs), 0.0)
        least, most = (lows - wider).maximum(low), (highs + wider).minimum(high)
        return least.cummax(dim=1).values, most.flip(1).cummin(dim=1).values.flip(1)

    def _middles(self, neurons: slice) -> torch.Tensor:
        lows = self.lows[neurons].double()
        return lows if self.is_exact else (lows + self.highs[neurons].double()) / 2

    def _confined(self, deviation: torch.Tensor) -> torch.Tensor:
        extent = self.high.double() - self.low.double()
        least, most = extent / (2 * self.num_samples) ** 0.5, extent / 2
        return deviation.maximum(least * (1 - 2.0**-50)).minimum(most * (1 + 2.0**-50))

    def _ranks(self, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the ranks on either side of each quantile, and the weight of the upper one."""
        probs = torch.as_tensor(probs, dtype=torch.float64, device=self.lows.device)
        for prob in probs[~((probs >= 0) & (probs <= 1))].tolist():
            raise ProbabilityError(prob)
        places = probs * (self.num_samples - 1)
        below = places.floor()
        return below.long(), places.ceil().long(), places - below

    def _cell(self, ranks: torch.Tensor) -> torch.Tensor:
        """Returns the cell that holds the sample of each rank, `[neurons, ranks]`."""
        return torch.searchsorted(self.ends, ranks.expand(len(self.ends), -1).contiguous(), right=True)

    def _sample(self, ranks: torch.Tensor) -> torch.Tensor:
        """Returns about where the sample of each rank lies, `[neurons, ranks]`, float64."""
        if self.is_exact:
            return self.lows[:, ranks].double()
        cells = self._cell(ranks)
        low, high = self.lows.gather(1, cells).double(), self.highs.gather(1, cells).double()
        before = self._samples_before(cells)
        share = ((ranks - before).double() + 0.5) / (self.ends.gather(1, cells) - before)
        return torch.minimum(low + share * (high - low), high)

    def _samples_before(self, cells: torch.Tensor) -> torch.Tensor:
        """Returns how many samples lie in the cells before each of `cells`, `[neurons, several]`, int64."""
        return self.ends.expand(len(cells), -1).gather(1, (cells - 1).clamp(min=0)).where(cells > 0, 0)

    def _share(self, x: torch.Tensor, side: Literal["left", "right"]) -> torch.Tensor:
        wanted = self._wanted(x, torch.promote_types(x.dtype, self.lows.dtype))
        cells = torch.searchsorted(self.highs.to(wanted.dtype), wanted, side=side)
        if self.is_exact:
            return (cells.t().double() / self.num_samples).reshape(x.shape)
        before = self._samples_before(cells)
        # A value beyond all cells has no cell of its own; the last, which has no width, adds nothing to it.
        cells = cells.clamp(max=self.lows.shape[1] - 1)
        low, high = self.lows.gather(1, cells).double(), self.highs.gather(1, cells).double()
        share = ((wanted.double() - low) / (high - low)).clamp(0, 1).where(low < high, 0.0)
        reached = before + share * (self.ends.gather(1, cells) - before)
        return (reached / self.num_samples).t().reshape(x.shape)

    def _wanted(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.reshape(-1, self.num_neurons).to(self.lows.device, dtype).t().contiguous()


def blocks(num_neurons: int, values_each: int) -> Iterator[slice]:
    """Yields all neurons in order, in blocks of at most `WORK_SIZE` values, or of one neuron."""
    step = max(1, WORK_SIZE // values_each)
    for start in range(0, num_neurons, step):
        yield slice(start, min(start + step, num_neurons))


def total(terms: torch.Tensor) -> torch.Tensor:
    """Returns the sum of each row, `[rows, several]` to `[rows]`, the same bits however many zeros follow it.

    So a neuron's numbers do not depend on how many cells its neighbours need.
    """
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[1] % 64))
    return terms.reshape(len(terms), -1, 64).sum(dim=2).cumsum(dim=1)[:, -1]


def check_finite(what: str, samples: torch.Tensor) -> None:
    """Checks that all values are finite.

    Args:
        what: What they are, for the error.
        samples: `[samples, neurons]`.

    Raises:
        NotFiniteError: Some value is NaN or infinite.
    """
    if samples.sum().isfinite():  # or the sum overflows, and each value is looked at
        return
    wrong = ~samples.isfinite()
    if wrong.any():
        raise NotFiniteError(what, int(wrong.sum()), int(wrong.any(dim=0).nonzero()[0]))


def ascending(samples: torch.Tensor) -> torch.Tensor:
    """Returns each neuron's samples in ascending order, `[samples, neurons]` to `[neurons, samples]`, NaN last.

    It is a contiguous copy, in float64 if the samples are, else in float32.

    Adding 0 makes -0 to 0: which of the two stands first would depend on how the processor sorts.
    """
    dtype = torch.float64 if samples.dtype == torch.float64 else torch.float32
    columns = samples.new_empty(samples.shape[::-1], dtype=dtype).copy_(samples.t()).add_(0.0)
    if columns.device.type != "cpu":
        return columns.sort(dim=1).values
    # NumPy sorts with vector instructions: on a CPU it was seen to take a fifteenth of the time of torch.sort.
    columns.numpy().sort(axis=1)
    return columns


def _moments(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and population variance of ascending samples, both `[neurons]`, float64.

    The mean is summed as differences from the median, so that a constant column gives its constant exactly, and a
    spread that is tiny beside the mean loses nothing. The variance is centred first: 0 for a constant column.
    """
    mean, variance = columns.new_empty(2, len(columns), dtype=torch.float64)
    for neurons in blocks(*columns.shape):
        values = columns[neurons]
        middle = values[:, columns.shape[1] // 2, None].double()
        # In float64, as the vectors are.
        mean[neurons] = middle[:, 0] + (values - middle).mean(dim=1)
        variance[neurons] = (values - mean[neurons, None]).square_().mean(dim=1)
    return mean, variance
