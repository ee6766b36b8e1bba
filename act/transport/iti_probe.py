"""ITI-c: Inference-Time Intervention along the direction of a linear probe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch.nn.functional import logsigmoid

from act.errors import NotFiniteError, ProbeError, ShapeError
from act.transport.affine import Fitted

#: Weight of the loss against that of ``‖w‖² / 2``: scikit-learn's default.
C = 1.0

#: The solver stops after a step that is this small beside where it stands. As its steps shrink quadratically, the
#: solution is then good to float64.
TOLERANCE = 1e-10
_MOST_STEPS = 200

#: A direction along which no sample's log-odds differ by more is rounding, not a direction.
_NOTHING = 1e-9


def fit_iti_probe(source: torch.Tensor, target: torch.Tensor) -> Fitted:
    """Returns the line of each neuron, with scale 1 and shift ``σ θ``.

    Li et al., *Inference-Time Intervention: Eliciting Truthful Answers from a Language Model*, arXiv 2306.03341,
    section 4.1; ITI-c in Table 1 of Rodriguez et al., arXiv 2410.23054. ``θ = w / ‖w‖`` is the normal of a logistic
    regression, from the source to the target, and `σ` the standard deviation of all samples of both sides projected on
    it: a strength of α is a shift of α standard deviations. Pooling in the paper: last, on the outputs of attention
    heads.

    `w` and the intercept `c` minimise ``‖w‖² / 2 + C Σ log(1 + exp(-y (w·x + c)))``, ``C = 1``, the intercept free, as
    scikit-learn's LogisticRegression does by default, here by Newton's method in float64 to `TOLERANCE`.

    Needs samples, unlike all other methods: the neurons of a site decide together, so a run must store the pooled
    activations themselves (``store: {activations: all}``), and both sides of one site are in memory, with a matrix
    of the smaller of samples and neurons squared. Where no direction tells the sides apart, ``w = 0``, the map is the
    identity.

    Args:
        source: Pooled activations of the source, a row a sample, `[samples, neurons]`, finite.
        target: Those of the target, of as many neurons.

    Raises:
        ShapeError: They are no samples of the same neurons.
        NotFiniteError: Some value is NaN or infinite.
        ProbeError: The solver did not arrive, which no data is known to cause.
    """
    samples = _centred(source, target)
    labels = torch.cat([source.new_zeros(len(source)), source.new_ones(len(target))]).double()
    # With more neurons than samples w lies in the span of the samples: of a basis of it only the coordinates matter.
    basis, inner = torch.linalg.qr(samples.t()) if len(samples) < samples.shape[1] else (None, None)
    probe = solve(samples if inner is None else inner.t(), labels)
    weights = probe.weights if basis is None else basis @ probe.weights
    projected = samples @ weights
    size = weights.norm()
    one = torch.ones_like(weights)
    none = torch.zeros_like(weights)
    if float(projected.abs().max()) <= _NOTHING:
        return Fitted(one, none, none, none)
    deviation = projected.std(correction=0) / size
    # The direction is off by at most twice the relative error of w, and so is what depends on it.
    lost = 2 * probe.error / size * (deviation + samples.norm() / len(samples) ** 0.5)
    return Fitted(one, deviation * weights / size, none, lost.expand_as(none))


@final
@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression.

    Args:
        weights: `[features]`, float64.
        intercept: A number, float64.
        error: How far the weights are from the exact ones at most, in norm.
    """

    weights: torch.Tensor
    intercept: torch.Tensor
    error: torch.Tensor


def solve(features: torch.Tensor, labels: torch.Tensor) -> Probe:
    """Returns the regularised logistic regression of labels 0 and 1, see `fit_iti_probe`.

    The objective less the best intercept is strongly convex in the weights with constant 1, so they are off by no more
    than its gradient: that of the weights, and the intercept's times the size of a sample.

    Args:
        features: `[samples, features]`, float64, centred.
        labels: `[samples]`, float64.

    Raises:
        ProbeError: It takes too many steps.
    """
    extended = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    signs, penalty = 2 * labels - 1, torch.ones_like(extended[0])
    penalty[-1] = 0

    def objective(at: torch.Tensor) -> torch.Tensor:
        return (penalty * at.square()).sum() / 2 - C * logsigmoid(signs * (extended @ at)).sum()

    place = torch.zeros_like(penalty)
    gradient, step = _newton(extended, signs, penalty, place)
    for _ in range(_MOST_STEPS):
        length = _length(objective, place, step, float(gradient @ step))
        place = place + length * step
        gradient, following = _newton(extended, signs, penalty, place)
        if length * step.norm() <= TOLERANCE * place.norm():
            error = gradient[:-1].norm() + 2 * features.norm(dim=1).max() * gradient[-1].abs()
            return Probe(place[:-1], place[-1], error)
        step = following
    raise ProbeError(_MOST_STEPS)


def _newton(
    extended: torch.Tensor, signs: torch.Tensor, penalty: torch.Tensor, place: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradient of the objective at a place, and Newton's step from there, both `[features + 1]`."""
    margins = extended @ place
    wrong = torch.sigmoid(-signs * margins)
    gradient = penalty * place - C * extended.t() @ (signs * wrong)
    curvature = C * wrong * (1 - wrong)
    hessian = (extended * curvature[:, None]).t() @ extended + torch.diag(penalty)
    return gradient, -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]


def _length(
    objective: Callable[[torch.Tensor], torch.Tensor], place: torch.Tensor, step: torch.Tensor, slope: float
) -> float:
    """Returns how much of a step to take: all of it if the objective falls enough, else a half, a fourth, …, or 0.

    Nothing is left to gain when it does not fall at all: then it is rounding that is being minimised.
    """
    here, length = float(objective(place)), 1.0
    while float(objective(place + length * step)) > here + 1e-4 * length * slope:
        length /= 2
        if length < TOLERANCE:
            return 0.0
    return length


def _centred(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns all samples less their mean, `[samples, neurons]`, float64: the intercept makes up for the mean."""
    for what, side in (("the source's samples", source), ("the target's samples", target)):
        if side.ndim != 2 or not len(side) or side.shape[1] != source.shape[-1]:
            raise ShapeError(what, side.shape, "[samples, neurons] with samples, of as many neurons as the other side")
        wrong = ~side.isfinite()
        if wrong.any():
            raise NotFiniteError(what, int(wrong.sum()), int(wrong.any(dim=0).nonzero()[0]))
    samples = torch.cat([source.detach().double(), target.detach().double().to(source.device)])
    return samples - samples.mean(dim=0)
