import numpy as np
import torch

from act.marginal import Marginal
from act.transport.mean import fit_mean


def test_every_neuron_is_moved_by_the_difference_of_the_means() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(20, 6)), generator.exponential(size=(31, 6))

    scale, shift = fit_mean(Marginal.from_samples(torch.from_numpy(a)), Marginal.from_samples(torch.from_numpy(b)))

    assert torch.equal(scale, torch.ones(6, dtype=torch.float64))
    np.testing.assert_allclose(shift, b.mean(0) - a.mean(0), rtol=1e-12)
