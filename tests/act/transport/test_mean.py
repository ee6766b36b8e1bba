import numpy as np
import pytest
import torch

from act.transport.mean import fit_mean
from tests.laws import exact, sketched


@pytest.mark.parametrize("law", [exact, sketched])
def test_every_neuron_is_moved_by_the_difference_of_the_means(law) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(20, 6)), generator.exponential(size=(31, 6))

    line = fit_mean(law(a), law(b))

    assert torch.equal(line.scale, torch.ones(6, dtype=torch.float64))
    np.testing.assert_allclose(line.shift, b.mean(0) - a.mean(0), rtol=1e-12)
    assert (line.slope_error == 0).all()
