"""Claim: a sketch of a few KiB gives a million samples' quantiles and Linear-AcT's slope, and proves what it states."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import datasketches
import numpy as np
import torch

from act.marginal import Marginal
from benchmarks.distributions import HEAVY, SHAPES, columns, sketched_law
from benchmarks.finding import Effort, Finding, Spread, Wanted
from benchmarks.judging import INNER, OUTER, Both, Fitted, exact_lines, judge, law_holds, slope_errors

NUM_SAMPLES = 1_000_000
NUM_NEURONS = {Effort.USUAL: 8, Effort.LONG: 32}

#: The default precision, and the one that is shown beside it.
PRECISION, FINER = 5, 6

#: The peers, of about the size of a sketch or a third of it, and what tells a rank.
PEERS: Mapping[str, Callable[[], "datasketches.kll_floats_sketch | datasketches.tdigest_float"]] = {
    "KLL, k = 200": lambda: datasketches.kll_floats_sketch(200),
    "t-digest, compression 100": lambda: datasketches.tdigest_float(100),
}

#: The shape that all are compared with.
GAUSSIAN = "Gaussian"

_RANKS = torch.arange(1, 1000, dtype=torch.float64) / 1000


#: The laws of each shape on both sides, by precision and by shape.
Laws = Mapping[int, Mapping[str, tuple[Both, Both]]]


@final
@dataclass(frozen=True, eq=False)
class Shape:
    """Columns of one shape on both sides, the target's shifted and scaled.

    Args:
        name: Name of the shape.
        source: Samples of the source, `[samples, neurons]`.
        target: Samples of the target.
        exact: The laws of both that keep the samples.
    """

    name: str
    source: torch.Tensor
    target: torch.Tensor
    exact: tuple[Marginal, Marginal]

    @classmethod
    def draw(cls, name: str, num_neurons: int) -> "Shape":
        """Returns the columns of a shape."""
        source, other = (columns(name, NUM_SAMPLES, num_neurons, seed) for seed in (0, 1))
        target = other.mul_(1.7).add_(0.3)
        return cls(name, source, target, (Marginal.from_samples(source), Marginal.from_samples(target)))

    def both(self, precision: int) -> tuple[Both, Both]:
        """Returns the laws of both sides, of cells of a precision and of samples."""
        cells = (sketched_law(samples, precision) for samples in (self.source, self.target))
        source, target = (Both(law, exact) for law, exact in zip(cells, self.exact, strict=True))
        return source, target

    def first(self, num_samples: int) -> "Shape":
        """Returns the first samples alone."""
        source, target = self.source[:num_samples], self.target[:num_samples]
        return Shape(self.name, source, target, (Marginal.from_samples(source), Marginal.from_samples(target)))


def measure(effort: Effort) -> list[Finding]:
    """Sketches columns of seven shapes, of a million samples each, and compares all with the samples."""
    shapes = [Shape.draw(name, NUM_NEURONS[effort]) for name in SHAPES]
    laws = {precision: {shape.name: shape.both(precision) for shape in shapes} for precision in (PRECISION, FINER)}
    fits = {
        (one.name, other): judge(laws[PRECISION][one.name][0], laws[PRECISION][other][1])
        for one in shapes
        for other in dict.fromkeys((one.name, GAUSSIAN))
    }
    return [
        *_quantile_findings(laws),
        *_slope_findings(shapes, laws),
        *_rank_findings(shapes, {name: source for name, (source, _) in laws[PRECISION].items()}),
        _containment(list(itertools.chain(*laws[PRECISION].values())), fits),
        *_widths(fits),
        *_shrinking(shapes),
    ]


def worst(values: Sequence[float]) -> Spread:
    """Returns the largest of some numbers that are the same in every run."""
    return Spread.of([max(values)])


def percent(values: torch.Tensor) -> float:
    """Returns the largest of some shares in per cent."""
    return 100 * float(values.max())


def _quantile_findings(laws: Laws) -> Iterator[Finding]:
    for title, probs, shapes, wanted in (
        ("quantiles .01 to .99", INNER, list(SHAPES), 0.5),
        ("quantiles .001 and .999 of shapes with light tails", OUTER, [one for one in SHAPES if one not in HEAVY], 0.5),
        ("quantiles .001 and .999 of log-normal and Student t3", OUTER, list(HEAVY), 1.5),
    ):
        found = {
            precision: {name: 100 * of[name][0].quantile_errors(probs) for name in shapes}
            for precision, of in laws.items()
        }
        notes = [
            f"{name}: worst {float(errors.max()):.2f} %, median column {float(errors.median()):.2f} %; "
            f"with p = {FINER} {float(found[FINER][name].max()):.2f} % and {float(found[FINER][name].median()):.2f} %; "
            f"the quantile itself scatters by {_scatter(laws[PRECISION][name][0], probs):.2f} % from column to column"
            for name, errors in found[PRECISION].items()
        ]
        claim = f"{title}, 1M samples, worst error / IQR (ReLU: / standard deviation)"
        every = torch.cat(list(found[PRECISION].values()))
        yield Finding(claim, "%", worst(every.tolist()), Wanted("under", wanted), tuple(notes))


def _scatter(law: Both, probs: Sequence[float]) -> float:
    """Returns the largest standard deviation of a quantile of samples over the columns, in per cent of the spread."""
    exact = law.samples.quantile(torch.tensor(probs, dtype=torch.float64))
    return percent(exact.std(dim=1) / law.spread.mean())


def _slope_findings(shapes: Sequence[Shape], laws: Laws) -> Iterator[Finding]:
    """Every shape to every shape; promised first of a shape to itself, shifted and scaled, and to a Gaussian."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for one, other in itertools.product(shapes, shapes):
        exact, _ = exact_lines(one.exact[0], other.exact[1])
        found[one.name, other.name] = {
            precision: percent(slope_errors(of[one.name][0], of[other.name][1], exact))
            for precision, of in laws.items()
        }
    usual = [(one, other) for one, other in found if other in (one, GAUSSIAN)]
    for title, pairs in (("a shape to itself and to a Gaussian", usual), ("every shape to every shape", list(found))):
        ranked = sorted(pairs, key=lambda pair: -found[pair][PRECISION])
        notes = tuple(
            f"{one} to {other}: {found[one, other][PRECISION]:.4f} %, with p = {FINER} {found[one, other][FINER]:.4f} %"
            for one, other in ranked[:6]
        )
        num = len(pairs) * shapes[0].source.shape[1]
        claim = f"slope of Linear-AcT, {title}, 1M samples a side, {num} pairs of columns, worst relative error"
        yield Finding(claim, "%", worst([found[pair][PRECISION] for pair in pairs]), Wanted("under", 0.1), notes)


def _rank_findings(shapes: Sequence[Shape], laws: Mapping[str, Both]) -> Iterator[Finding]:
    """Ranks at a thousand true quantiles: DataSketches 5.2 tells ranks better than it tells quantiles."""
    found: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for shape in shapes:
        at = shape.exact[0].quantile(_RANKS).float()
        found["ours"][shape.name] = _rank_errors(laws[shape.name].cells.cdf(at), at, shape.exact[0])
        for peer in PEERS:
            ranks = torch.stack([_peer_ranks(peer, *pair) for pair in zip(shape.source.T, at.T, strict=True)], dim=1)
            found[peer][shape.name] = _rank_errors(ranks, at, shape.exact[0])
    for peer in PEERS:
        ratios = torch.cat([found["ours"][name] / found[peer][name] for name in SHAPES])
        notes = tuple(
            f"{name}: {percent(found['ours'][name]):.3f} % against {percent(found[peer][name]):.3f} %"
            for name in SHAPES
        )
        claim = f"rank error of a sketch / that of DataSketches' {peer}, 1M samples, worst of {len(ratios)} columns"
        median = f"median over the columns: {float(ratios.median()):.4f} x"
        yield Finding(claim, "x", worst(ratios.tolist()), Wanted("under", 1.0), (median, *notes))


def _peer_ranks(peer: str, column: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    sketch = PEERS[peer]()
    sketch.update(np.ascontiguousarray(column.numpy()))
    inclusive = {"inclusive": True} if isinstance(sketch, datasketches.kll_floats_sketch) else {}
    return torch.tensor([sketch.get_rank(float(x), **inclusive) for x in at], dtype=torch.float64)


def _rank_errors(ranks: torch.Tensor, at: torch.Tensor, exact: Marginal) -> torch.Tensor:
    """Returns the worst distance of ranks, `[places, neurons]`, from those that each place has, `[neurons]`."""
    least, most = exact.cdf_below(at), exact.cdf(at)
    return torch.maximum(ranks - most, least - ranks).clamp(min=0).amax(dim=0)


def _containment(laws: Sequence[Both], fits: Mapping[tuple[str, str], Fitted]) -> Finding:
    held: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for one in itertools.chain(map(law_holds, laws), (fitted.held for fitted in fits.values())):
        for name, part in one.items():
            held[name].append(part)
    counts = {name: (int(torch.cat(parts).sum()), sum(map(len, parts))) for name, parts in held.items()}
    notes = tuple(f"{name}: {true} of {cases}" for name, (true, cases) in counts.items())
    share = 100 * sum(true for true, _ in counts.values()) / sum(cases for _, cases in counts.values())
    return Finding(
        "proven bounds that contained the truth, 1M samples", "%", worst([share]), Wanted("at least", 100.0), notes
    )


def _widths(fits: Mapping[tuple[str, str], Fitted]) -> Iterator[Finding]:
    for method in ("linear", "quantile"):
        ratios = torch.cat([fitted.proven[method] / fitted.true[method] for fitted in fits.values()])
        notes = tuple(
            f"{one} to {other}: proven {float(fitted.proven[method].median()):.2e}, "
            f"true {float(fitted.true[method].median()):.2e} standard deviations of the target"
            for (one, other), fitted in fits.items()
        )
        claim = f"proven bound of the {method} map / its true error over the source's range, {len(ratios)} maps"
        yield Finding(claim, "x", Spread.of(ratios.tolist()), None, notes)


def _shrinking(shapes: Sequence[Shape]) -> Iterator[Finding]:
    """The bounds of a shape to itself, and of a shape to a Gaussian, by precision and by number of samples."""
    by_precision = {f"p = {p}": _medians([shape.first(100_000) for shape in shapes], p) for p in range(3, 8)}
    by_samples = {
        f"{num:,} samples": _medians([shape.first(num) for shape in shapes], PRECISION)
        for num in (1_000, 10_000, 100_000, 1_000_000)
    }
    for title, key, rows in (
        ("100,000 samples, p = 5", f"p = {PRECISION}", by_precision),
        ("1M samples, p = 5", "1,000,000 samples", by_samples),
    ):
        notes = tuple(
            f"{row}: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items())
            for row, found in rows.items()
        )
        claim = f"median proven bound of the linear map, a shape to itself, {title}, in deviations of the target"
        yield Finding(claim, "sd", Spread.of([rows[key]["linear to itself"]]), None, notes)


def _medians(shapes: Sequence[Shape], precision: int) -> dict[str, float]:
    laws = {shape.name: shape.both(precision) for shape in shapes}
    found: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for name, (source, _) in laws.items():
        for title, other in (("itself", name), ("a Gaussian", GAUSSIAN)):
            if title == "a Gaussian" and name == other:
                continue
            fitted = judge(source, laws[other][1])
            for method, proven in fitted.proven.items():
                found[f"{method} to {title}"].append(proven)
    return {title: float(torch.cat(parts).median()) for title, parts in found.items()}
