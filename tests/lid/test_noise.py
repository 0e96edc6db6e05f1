"""The noises themselves: standard normal, random signs, keyed by seed and sample alone."""

import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.exact import GaussianDenoiser
from memfold.lid.noised import noised, rows_that_fit
from memfold.tensors import base_seed, expand, normal_like, per_sample, rademacher_like
from tests.oracles import seeded, z_score


def points(n=500):
    return torch.randn(n, 3, 4, generator=seeded(), dtype=torch.float64)


def test_normal_noises_are_normal_and_independent():
    n = normal_like(points(), 8, seed=1)
    assert n.shape == (500, 8, 3, 4)
    for value in (n, n**2 - 1, n**3, n**4 - 3):
        assert abs(z_score(value)) < 4
    assert abs(z_score(n[:, 0] * n[:, 1])) < 4  # between noises
    assert abs(z_score(n[1:] * n[:-1])) < 4  # between samples
    assert abs(z_score(n[..., 1:] * n[..., :-1])) < 4  # between coordinates


def test_random_signs_are_signs_and_independent():
    w = rademacher_like(points(), 8, seed=1)
    assert w.unique().tolist() == [-1, 1]
    assert abs(z_score(w)) < 4
    assert abs(z_score(w[:, 0] * w[:, 1])) < 4
    assert abs(z_score(w[1:] * w[:-1])) < 4


def test_key_is_seed_and_sample():
    x = points(6)
    whole = normal_like(x, 4, seed=9)
    torch.testing.assert_close(normal_like(x[4:5], 4, seed=9), whole[4:5], rtol=0, atol=0)
    torch.testing.assert_close(normal_like(x.flip(0), 4, seed=9).flip(0), whole, rtol=0, atol=0)
    torch.testing.assert_close(normal_like(x.float(), 4, seed=9).double(), whole, rtol=0, atol=0)
    assert bool((normal_like(x, 4, seed=10) != whole).all())
    assert normal_like(x[:0], 4, seed=9).shape == (0, 4, 3, 4)


def test_minus_zero_is_zero():
    x = torch.zeros(1, 5)
    torch.testing.assert_close(normal_like(-x, 2, seed=1), normal_like(x, 2, seed=1))


def test_noise_does_not_share_its_seed_with_the_key_of_the_next_call():
    generator = seeded()
    assert len({base_seed(generator) for _ in range(100)}) == 100
    assert len({base_seed(None) for _ in range(10)}) == 10


def test_helpers():
    x = points(2)
    assert expand(0.5, x).shape == (2, 1, 1)
    assert expand(torch.tensor([1, 2]), x).flatten().tolist() == [1.0, 2.0]
    torch.testing.assert_close(per_sample(x), torch.stack([row.sum() for row in x]))


def test_rows_are_samples_times_noises_in_order():
    model = GaussianDenoiser(torch.zeros(3).double(), torch.ones(2).double())
    x = torch.arange(5.0).double()[:, None] * torch.ones(3)
    rows = list(noised(model, x, 0.1, None, n_noises=3, seed=4, batch_size=4))
    assert [len(r.x) for r in rows] == [4, 4, 4, 3]
    clean, noise = torch.cat([r.clean for r in rows]), torch.cat([r.noise for r in rows])
    assert clean[:, 0].tolist() == [i for i in range(5) for _ in range(3)]
    drawn = normal_like(x, 3, seed=4).flatten(0, 1)
    assert torch.equal(torch.cat([r.x for r in rows]), clean + 0.1 * drawn)
    torch.testing.assert_close(noise, drawn)  # read again from x, which rounds it


def test_rows_that_fit_go_with_the_budget():
    model = GaussianDenoiser(torch.zeros(50).double(), torch.ones(20).double())
    x = torch.zeros(2, 50, dtype=torch.float64)
    one = rows_that_fit(model, x, 0.1, None, 10**6)
    assert 1 < one < 10**4
    assert abs(rows_that_fit(model, x, 0.1, None, 10**7) - 10 * one) < 20
    assert rows_that_fit(model, x, 0.1, None, 10) == 1
    # 50 probes of 50 dimensions with their double copies: 48 bytes a number
    assert rows_that_fit(model, x, 0.1, None, 10**6, 99) < 10**6 / (48 * 50 * 50)


@pytest.mark.parametrize(("b", "n", "size"), [(3, 50, 1), (7, 5, 3), (4, 6, 13), (2, 4, 99)])
def test_each_sample_draws_its_noises_once_whatever_the_chunks(b, n, size, monkeypatch):
    x, drawn = points(b), []

    def counted(rows, n, seed):
        drawn.extend(range(len(rows)))
        return normal_like(rows, n, seed)

    monkeypatch.setattr("memfold.lid.noised.normal_like", counted)
    model = FunctionDenoiser(lambda y, sigma: y)
    rows = list(noised(model, x, 0.1, None, n_noises=n, seed=5, batch_size=size))
    assert len(drawn) == b  # not one time a chunk
    assert [len(r.noise) for r in rows[:-1]] == [min(size, b * n)] * (len(rows) - 1)
    found, clean = (torch.cat([getattr(r, k) for r in rows]) for k in ("x", "clean"))
    assert torch.equal(found, clean + 0.1 * normal_like(x, n, 5).flatten(0, 1))
