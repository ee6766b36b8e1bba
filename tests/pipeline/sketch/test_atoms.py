"""Values that occur again and again: atoms are exact, and the extremes' own cells prove no more than they know."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.marginal import Marginal
from act.transport.ranking import auroc, auroc_bounds
from pipeline.sketch import Frame, HistogramSketch

PROBS = torch.linspace(0, 1, 41, dtype=torch.float64)


def sketched(samples: torch.Tensor) -> Marginal:
    sketch = HistogramSketch.empty(Frame.from_pilot(samples[:256]))
    sketch.update(samples)
    return sketch.marginal()


def gridded(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Samples whose extremes lie on ends of cells."""
    noise = torch.randn(2000, 8, generator=generator)
    match kind:
        case "quarters":
            return (4 * noise).round() / 4
        case "bfloat16":
            return (3 * noise).bfloat16().float()
        case "far from zero":
            return 1e3 + 1e-3 * noise
        case "one-sided":
            return noise.abs().mul(8).ceil() / 8
    return torch.randint(1, 3, (2000, 8), generator=generator).float()


@pytest.mark.parametrize("kind", ["quarters", "bfloat16", "far from zero", "one-sided", "two values"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_bounds_of_values_on_a_grid_contain_the_truth(kind, seed):
    samples = gridded(kind, torch.Generator().manual_seed(seed))
    law, truth = sketched(samples), Marginal.from_samples(samples)
    lower, upper = law.quantile_bounds(PROBS)
    assert ((lower <= truth.quantile(PROBS)) & (truth.quantile(PROBS) <= upper)).all()
    least, most = law.cdf_bounds(samples[:32])
    assert ((least <= truth.cdf(samples[:32])) & (truth.cdf(samples[:32]) <= most)).all()


def test_zeros_of_both_sides_are_ties_and_leave_the_area_all_but_certain():
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(20_000, 8, generator=generator).sub(shift).relu() for shift in (1.2, 1.1))
    area = auroc(Marginal.from_samples(source), Marginal.from_samples(target))
    least, most = auroc_bounds(sketched(source), sketched(target))
    assert ((least <= area) & (area <= most)).all()
    assert float((most - least).max()) < 1e-3


def test_an_extreme_at_the_far_end_of_its_cell_does_not_pretend_to_be_exact():
    samples = torch.cat([torch.full((300, 1), 1.0), torch.linspace(1, 9, 301)[1:, None], torch.zeros(700, 1)])
    frame = Frame(
        *(torch.tensor([value], dtype=dtype) for value, dtype in ((0.0, torch.float32), *[(0, torch.int32)] * 3))
    )
    sketch = HistogramSketch.empty(frame)
    sketch.update(samples[samples[:, 0] > 0])
    law = sketch.marginal()
    assert law.lows[0, 1] < law.highs[0, 1]
    assert law.edge_error[0] > 0
