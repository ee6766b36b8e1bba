"""Transport: the maps that carry each neuron's source law to its target law, a file per method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch

from act.errors import SamplesError, ShapeError, UnknownMethodError
from act.marginal import Marginal
from act.tokens import TokenLaw
from act.transport.actadd import fit_actadd
from act.transport.affine import Fitted, TransportMap
from act.transport.aura import fit_aura
from act.transport.caa import fit_caa
from act.transport.det_zero import fit_det_zero
from act.transport.east import fit_east
from act.transport.gaussian import fit_gaussian
from act.transport.interface import AbstractMap
from act.transport.iti_mean import fit_iti_mean
from act.transport.iti_probe import fit_iti_probe
from act.transport.linear import fit_linear
from act.transport.mean import fit_mean
from act.transport.quantile import QuantileMap, fit_quantile
from act.transport.selection import Selection, scores, select
from act.transport.support import Support, bounds

__all__ = [
    "METHODS",
    "AbstractMap",
    "Method",
    "QuantileMap",
    "Samples",
    "Selection",
    "Support",
    "Transport",
    "TransportMap",
    "default_support",
    "fit",
    "map_from_tensors",
    "scores",
    "select",
]

Method = Literal[
    "det-zero",
    "actadd",
    "caa",
    "aura",
    "east",
    "iti-mean",
    "iti-probe",
    "mean",
    "gaussian",
    "linear",
    "quantile",
]
METHODS: tuple[str, ...] = get_args(Method)

#: Pooled activations of the source and of the target, a row a sample, `[samples, neurons]` each.
Samples = tuple[torch.Tensor, torch.Tensor]

#: Methods that need two laws and nothing else, and give a line.
_OF_LAWS: Mapping[str, Callable[[Marginal, Marginal], Fitted]] = {
    "actadd": fit_actadd,
    "caa": fit_caa,
    "aura": fit_aura,
    "east": fit_east,
    "iti-mean": fit_iti_mean,
    "mean": fit_mean,
    "gaussian": fit_gaussian,
    "linear": fit_linear,
}

#: Maps between laws, which are known where the source law is. In Table 1 the others have no support.
_ON_SUPPORT = ("mean", "gaussian", "linear", "quantile")


@final
@dataclass(frozen=True)
class Transport:
    """What kind of map to fit: the `transport` section of a spec.

    Args:
        method: One of `METHODS`.
        support: Where the map moves an activation at all, see `fit`; None is the method's default.
        threshold: Average precision above which ``det-zero`` sets a neuron.
        select: The neurons that are moved; None moves all.
    """

    method: str = "linear"
    support: Support | None = None
    threshold: float = 0.5
    select: Selection | None = None

    @property
    def where(self) -> Support:
        """The support, or the method's default."""
        return default_support(self.method) if self.support is None else self.support


def default_support(method: str) -> Support:
    """Returns the support that a method has when none is named, see `fit`."""
    return "observed" if method in _ON_SUPPORT else "unbounded"


def fit(
    method: str,
    source: Marginal,
    target: Marginal,
    *,
    support: Support | None = None,
    tokens: TokenLaw | None = None,
    threshold: float = 0.5,
    samples: Samples | None = None,
) -> AbstractMap:
    """Returns the transport of each neuron from its source law to its target law.

    It is computed in float64 and rounded to float32 at the end. Its error is proven, see `AbstractMap`.

    Args:
        method: One of `METHODS`.
        source: Law of each neuron on the source prompts.
        target: Law of each neuron on the target prompts; its number of samples may differ.
        support: Where the map moves an activation at all: ``observed`` is the range of the source law, ends included;
            ``tokens`` the range of single tokens; two numbers are percentiles of the source law; ``unbounded`` is
            everywhere. None is ``observed`` for ``mean``, ``gaussian``, ``linear`` and ``quantile``, and ``unbounded``
            for the other methods.
        tokens: Law of single source tokens, for the support ``tokens``.
        threshold: Average precision above which ``det-zero`` sets a neuron, at least 0 and below 1.
        samples: What the laws were made of, in rows that are not sorted: ``iti-probe`` alone needs them.

    Raises:
        UnknownMethodError: There is no such method.
        ShapeError: The laws, or the samples, have different numbers of neurons.
        SupportError: There is no such support.
        TokensError: The support is ``tokens`` and there is no law of them.
        ThresholdError: There is no such average precision.
        PairsError: ``actadd`` has no pairs.
        SamplesError: ``iti-probe`` has no samples.
        NotFiniteError: A map is not finite in float32.
    """
    if method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    if source.num_neurons != target.num_neurons:
        found = (target.num_samples, target.num_neurons)
        raise ShapeError("the target law", found, f"the source law's {source.num_neurons} neurons")
    low, high = bounds(default_support(method) if support is None else support, source, tokens)
    if method == "quantile":
        line = fit_linear(source, target).on(low, high, source)
        knots_x, knots_y, error = fit_quantile(source, target)
        return QuantileMap(replace(line, error=error), knots_x, knots_y)
    return _line(method, source, target, threshold, samples).on(low, high, source)


def map_from_tensors(parts: Mapping[str, torch.Tensor]) -> AbstractMap:
    """Returns the map that `AbstractMap.tensors` took apart.

    Args:
        parts: ``scale``, ``shift``, ``low``, ``high`` and ``error``; with ``knots_x`` and ``knots_y`` it is a
            `QuantileMap`.

    Raises:
        ShapeError: The shapes do not belong together.
        NotFiniteError: A number that must be is not finite.
        EmptySupportError: Some neuron's support is empty or NaN.
        BoundError: An error is negative or NaN.
        KnotsError: Some neuron's knots do not ascend.
    """
    affine = TransportMap(parts["scale"], parts["shift"], parts["low"], parts["high"], parts["error"])
    return QuantileMap(affine, parts["knots_x"], parts["knots_y"]) if "knots_x" in parts else affine


def _line(method: str, source: Marginal, target: Marginal, threshold: float, samples: Samples | None) -> Fitted:
    if method == "det-zero":
        return fit_det_zero(source, target, threshold)
    if method != "iti-probe":
        return _OF_LAWS[method](source, target)
    if samples is None:
        raise SamplesError(method)
    if samples[0].shape[-1] != source.num_neurons:
        raise ShapeError("the source's samples", samples[0].shape, f"the laws' {source.num_neurons} neurons")
    return fit_iti_probe(*samples)
