"""Measures of what a mitigation did, against closed forms."""

from __future__ import annotations

import pytest
import torch

from memfold.mitigation.evaluate import copies, frechet
from memfold.types import InputError


def test_the_frechet_distance_of_two_normal_clouds():
    """|m|^2 + sum (s - t)^2 for diagonal covariances s^2 and t^2."""
    g = torch.Generator().manual_seed(0)
    s, t, m = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), torch.tensor([1.0, -2.0])
    a, b = (torch.randn(40000, 2, generator=g, dtype=torch.float64) for _ in range(2))
    truth = float((m**2).sum() + ((s - t) ** 2).sum())
    assert frechet(a * s, b * t + m) == pytest.approx(truth, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="needs two of each"):
        frechet(a[:1], b)


def test_copies_are_counted_by_root_mean_square_even_far_from_the_origin():
    reference = torch.full((2, 4, 2, 2), 1000.0)
    reference[1] += 50
    x = torch.stack([reference[0] + 0.1, reference[0] + 0.2, reference[1] - 0.149])
    assert copies(x, reference, 0.15).tolist() == [True, False, True]
