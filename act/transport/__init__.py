"""Transport: the maps that carry each neuron's source law to its target law, a file per method."""

from dataclasses import dataclass
from typing import Literal, final, get_args

from act.errors import ShapeError, UnknownMethodError
from act.marginal import Marginal
from act.transport.affine import TransportMap
from act.transport.linear import fit_linear
from act.transport.mean import fit_mean
from act.transport.support import Support, bounds

__all__ = ["METHODS", "Method", "Support", "Transport", "TransportMap", "fit"]

Method = Literal["mean", "linear"]
METHODS: tuple[str, ...] = get_args(Method)


@final
@dataclass(frozen=True)
class Transport:
    """What kind of map to fit: the `transport` section of a spec.

    Args:
        method: One of `METHODS`.
        support: Where the map moves an activation at all, see `fit`.
    """

    method: str = "linear"
    support: Support = "observed"


def fit(method: str, source: Marginal, target: Marginal, *, support: Support = "observed") -> TransportMap:
    """Returns the transport of each neuron from its source law to its target law.

    It is computed in float64 and rounded to float32 at the end.

    Args:
        method: One of `METHODS`.
        source: Law of each neuron on the source prompts.
        target: Law of each neuron on the target prompts; its number of samples may differ.
        support: Where the map moves an activation at all: ``observed`` is the range of the source law, ends included;
            two numbers are percentiles of it; ``unbounded`` is everywhere.

    Raises:
        UnknownMethodError: There is no such method.
        ShapeError: The laws have different numbers of neurons.
        SupportError: There is no such support.
    """
    if source.num_neurons != target.num_neurons:
        found = (target.num_samples, target.num_neurons)
        raise ShapeError("the target law", found, f"the source law's {source.num_neurons} neurons")
    low, high = bounds(support, source)
    match method:
        case "mean":
            scale, shift = fit_mean(source, target)
        case "linear":
            scale, shift = fit_linear(source, target)
        case _:
            raise UnknownMethodError(method, METHODS)
    return TransportMap(scale, shift, low, high)
