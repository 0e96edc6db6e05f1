"""Bias and standard error on the exact law of flat data: (r_j / r_k)^d are uniform, sorted."""

import numpy as np
import pytest
import torch
from scipy.special import polygamma, psi

from memfold.lid._neighbors_base import Neighborhood
from memfold.lid.corrint import CorrInt
from memfold.lid.mle import MLE
from memfold.lid.mom import MOM
from tests.oracles import seeded

N, K = 20_000, 200


def on_flat_data(model, d, monkeypatch):
    """LID and standard error at N points whose distances are drawn by the law, without a space."""
    ratio = torch.ones(N, K, dtype=torch.float64)
    ratio[:, :-1] = torch.rand(N, K - 1, generator=seeded(d), dtype=torch.float64).sort(1).values
    distance = ratio ** (1 / d)
    near = Neighborhood(distance, distance.long(), torch.zeros(N, dtype=torch.bool))
    monkeypatch.setattr(type(model), "_neighborhood", lambda *_: near)
    model.n_features_in_ = 50
    lid, stderr = model._local(torch.zeros(N, 50, dtype=torch.float64), False, True)
    return lid.numpy(), stderr.numpy()


def mom_bias(d):  # of m / (1 - m), m with r_k itself in it: by two Taylor terms, in 1 / k
    return (d + 1 + d * (d + 1) / (d + 2)) / K


# the relative error of a Taylor series cut after its term in 1 / k: about the square of that term,
# and half of it for the spread, whose own correction is left out
CASES = {
    "mle": (MLE(K), lambda d: 0.0, 1 / K),
    "mom": (MOM(K), mom_bias, 1 / K),
    "corrint": (CorrInt(K), lambda d: 0.0, 0.0079),  # V / A^2, tested below
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("d", [1, 4, 20])
def test_bias_is_what_theory_leaves(name, d, monkeypatch):
    model, bias, small = CASES[name]
    lid, _ = on_flat_data(model, d, monkeypatch)
    error = lid.mean() - d - bias(d)
    assert abs(error) < 4 * lid.std() / N**0.5 + 12 * d * small**2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("d", [1, 4, 20])
def test_standard_error_is_the_spread(name, d, monkeypatch):
    model, _, small = CASES[name]
    lid, stderr = on_flat_data(model, d, monkeypatch)
    spread = lid.std(ddof=1)
    # the spread of N numbers is known to 1 / sqrt(2 N) of itself
    assert abs(np.sqrt((stderr**2).mean()) / spread - 1) < 4 / np.sqrt(2 * N) + 3 * small


def test_the_size_of_the_correction():
    j = K // 4
    mean, variance = psi(K) - psi(j), polygamma(1, j) - polygamma(1, K)
    assert variance / mean**2 == pytest.approx(0.0079, rel=0.02)
    # far above what the test of the bias lets pass, 4 standard errors of the mean
    assert variance / mean**2 > 3 * 4 * np.sqrt(variance) / mean / N**0.5
