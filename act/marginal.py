"""The law of each neuron's activation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from act.errors import EmptyMarginalError, NotFiniteError, ProbabilityError, ShapeError

#: Numbers in one float64 work tensor: 32 MiB, whatever the number of samples and neurons.
WORK_SIZE = 1 << 22


@final
@dataclass(frozen=True, eq=False)
class Marginal:
    """The empirical law of each neuron's activation, one neuron apart from the others.

    Built by `from_samples`.

    Args:
        columns: Each neuron's samples, ascending, `[neurons, samples]`, contiguous, float32 or float64.
    """

    columns: torch.Tensor

    @classmethod
    def from_samples(cls, samples: torch.Tensor) -> "Marginal":
        """Returns the law that gives each sample the same weight.

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
        finite = samples.isfinite().all(dim=0)
        if not finite.all():
            count = int((~samples.isfinite()).sum())
            raise NotFiniteError("the tensor of samples", count, int((~finite).nonzero()[0]))
        return cls(ascending(samples.detach()))

    @property
    def num_samples(self) -> int:
        """Number of samples that the law rests on."""
        return self.columns.shape[1]

    @property
    def num_neurons(self) -> int:
        """Number of neurons."""
        return self.columns.shape[0]

    @property
    def values(self) -> torch.Tensor:
        """Each neuron's samples, ascending, `[samples, neurons]`: a view."""
        return self.columns.t()

    @property
    def low(self) -> torch.Tensor:
        """Smallest value of each neuron, `[neurons]`, in the dtype of the samples."""
        return self.columns[:, 0]

    @property
    def high(self) -> torch.Tensor:
        """Largest value of each neuron, `[neurons]`, in the dtype of the samples."""
        return self.columns[:, -1]

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean of each neuron, `[neurons]`, float64.

        Summed as differences from the median, so that a constant column gives its constant exactly, and a spread
        that is tiny beside the mean loses nothing.
        """
        middle = self.columns[:, self.num_samples // 2, None].double()
        return middle[:, 0] + self.expect(lambda columns, neurons: columns - middle[neurons])

    @cached_property
    def variance(self) -> torch.Tensor:
        """Population variance of each neuron, `[neurons]`, float64: centred first, 0 for a constant column."""
        mean = self.mean[:, None]
        return self.expect(lambda columns, neurons: (columns - mean[neurons]).square())

    def expect(self, function: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """Returns the mean of a function of the activation over the law of each neuron, `[neurons]`, float64.

        Args:
            function: Takes the values of some neurons, `[neurons, samples]` in float64, and which neurons these are,
                and returns as many values without writing to its input. It is called on blocks of neurons, so that
                memory stays bounded.
        """
        means = self.columns.new_empty(self.num_neurons, dtype=torch.float64)
        for neurons in blocks(self.num_neurons, self.num_samples):
            means[neurons] = function(self.columns[neurons].double(), neurons).double().mean(dim=1)
        return means

    def quantile(self, probs: torch.Tensor) -> torch.Tensor:
        """Returns quantiles of each neuron, `[probs, neurons]`, float64, linear between samples as in NumPy.

        Args:
            probs: Probabilities from 0 to 1, `[probs]`.

        Raises:
            ProbabilityError: Some probability lies outside [0, 1].
        """
        probs = torch.as_tensor(probs, dtype=torch.float64, device=self.columns.device)
        for prob in probs[~((probs >= 0) & (probs <= 1))].tolist():
            raise ProbabilityError(prob)
        places = probs * (self.num_samples - 1)
        below = places.floor()
        above = places.ceil().long()
        weight = (places - below)[:, None]
        return torch.lerp(self.values[below.long()].double(), self.values[above].double(), weight)

    def cdf(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the share of each neuron's samples that are at most `x`, in the shape of `x`, float64.

        Args:
            x: `[neurons]`, or several values of each neuron, `[samples, neurons]`.
        """
        dtype = torch.promote_types(x.dtype, self.columns.dtype)
        wanted = x.reshape(-1, self.num_neurons).to(self.columns.device, dtype).t().contiguous()
        counts = torch.searchsorted(self.columns.to(dtype), wanted, right=True)
        return (counts.t().double() / self.num_samples).reshape(x.shape)


def blocks(num_neurons: int, values_each: int) -> Iterator[slice]:
    """Yields all neurons in order, in blocks of at most `WORK_SIZE` values, or of one neuron."""
    step = max(1, WORK_SIZE // values_each)
    for start in range(0, num_neurons, step):
        yield slice(start, min(start + step, num_neurons))


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
