"""LID of black boxes: known manifolds, every data-side estimator, copies."""

import numpy as np
import pytest
import torch

from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.sampler import sampler_lid
from memfold.lid.twonn import TwoNN
from memfold.types import InputError
from tests.oracles import rotation, seeded


def plane(k=3, d=12):
    q = rotation(d, k, 1)

    def sample(n, generator):
        return torch.randn(n, k, generator=generator, dtype=torch.float64) @ q.mT + 5

    return sample


@pytest.mark.parametrize("estimator", [MLE(50), LPCA(60), TwoNN()])
def test_dimension_of_a_subspace(estimator):
    sample = plane()
    x = sample(4, seeded(5)) * 1.0
    x = 5 + 0.3 * (x - 5)
    result = sampler_lid(sample, x, estimator, generator=seeded())
    assert bool(((result.lid - 3).abs() < 4 * result.stderr + 0.3).all())
    assert result.lid.dtype == torch.float64
    assert result.method == f"{type(estimator).__name__} of 2000 samples, points"
    assert not hasattr(estimator, "n_features_in_")  # a copy was fitted


def test_copies_are_a_point_mass():
    sample = plane()
    copy = sample(1, seeded(7))

    def memorizer(n, generator):
        x = sample(n, generator)
        x[: n // 3] = copy
        return x

    x = torch.cat([copy, 0.3 * sample(1, seeded(8)) + 3.5])
    with pytest.warns(UserWarning, match="1 of 2 points"):
        result = sampler_lid(memorizer, x, MLE(20), generator=seeded())
    assert float(result.lid[0]) == 0
    assert float(result.lid[1]) > 1.5


def test_chunks_and_arrays_and_images():
    rows = plane()(100, seeded()).reshape(100, 3, 4)
    asked = []

    def sample(n, generator):
        asked.append(n)
        start = sum(asked[:-1])
        return rows[start : start + n].numpy()

    result = sampler_lid(sample, rows[:2], MLE(20), n_samples=100, batch_size=33)
    assert asked == [33, 33, 33, 1]
    truth = MLE(20).fit(rows.flatten(1).numpy()).predict(rows[:2].flatten(1).numpy())
    np.testing.assert_allclose(result.lid.numpy(), truth)


def test_generator_decides():
    x = torch.full((1, 12), 5.0, dtype=torch.float64)
    one, two = (sampler_lid(plane(), x, MLE(20), generator=seeded(3)) for _ in range(2))
    other = sampler_lid(plane(), x, MLE(20), generator=seeded(4))
    assert one.lid.tolist() == two.lid.tolist() != other.lid.tolist()


def test_refusals():
    x = torch.ones(1, 3)
    with pytest.raises(InputError, match=r"returned shape \(500, 2\) when asked for 500"):
        sampler_lid(lambda n, g: torch.ones(n, 2), x, MLE())
    with pytest.raises(InputError, match="sample 0 holds NaN"):
        sampler_lid(lambda n, g: torch.full((n, 3), torch.nan), x, MLE())
    with pytest.raises(InputError, match=r"x has shape \(3,\); pass a batch"):
        sampler_lid(lambda n, g: torch.ones(n, 3), x[0], MLE())
