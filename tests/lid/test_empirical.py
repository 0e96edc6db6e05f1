"""The closed form of the empirical denoiser, against autograd and a lattice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.base import clone

from memfold.lid.empirical import EmpiricalLID
from memfold.tensors import normal_like
from memfold.types import InputError


def oracle(rows, x, sigma):
    """tr dD/dx and FLIPD at x: autograd through the softmax over all rows, copies and all."""

    def denoise(point):
        return torch.softmax(-(rows - point).square().sum(1) / (2 * sigma**2), 0) @ rows

    trace = float(torch.autograd.functional.jacobian(denoise, x).trace())
    return trace, trace + float((denoise(x) - x).square().sum()) / sigma**2


def rows_with_copies(rng):
    rows = rng.standard_normal((12, 3)) + 5
    return np.concatenate([rows, rows[:1], rows[:1], rows[4:5]])


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
@pytest.mark.filterwarnings("ignore:sigma")
def test_equals_autograd(sigma, rng):
    rows, x = rows_with_copies(rng), rng.standard_normal((4, 3)) + 5
    lid, stderr = EmpiricalLID(sigma, at="x").fit(rows).predict_with_stderr(x)
    want = [oracle(torch.from_numpy(rows), p, sigma)[1] for p in torch.from_numpy(x)]
    np.testing.assert_allclose(lid, want, rtol=1e-9)
    assert (stderr == 0).all()
    model = EmpiricalLID(sigma, n_noises=5, random_state=3).fit(rows)
    points = torch.from_numpy(x)
    noised = points[:, None] + sigma * normal_like(points, 5, model._seed)
    traces = [[oracle(torch.from_numpy(rows), p, sigma)[0] for p in some] for some in noised]
    lid, stderr = model.predict_with_stderr(x)
    np.testing.assert_allclose(lid, np.mean(traces, 1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(stderr, np.std(traces, 1, ddof=1) / 5**0.5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("at", ["x", "noised"])
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.filterwarnings("ignore:5 neighbours")
def test_one_copy_of_the_row_is_left_out_by_index(at, k, rng):
    rows = rows_with_copies(rng)
    model = EmpiricalLID(1.5, n_neighbors=k, at=at, random_state=0)
    lid = model.fit_predict(rows)
    assert model.dimension_ == pytest.approx(lid.mean())
    for i in (0, 1, 4, 14):
        others = clone(model).fit(np.delete(rows, i, 0))
        np.testing.assert_allclose(others.predict(rows[i : i + 1]), lid[i], rtol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("at", ["x", "noised"])
def test_lattice_of_dimension_d_has_lid_d(dim, at, rng):
    # By Poisson summation the discrete Gaussian on a lattice of spacing 1 has variance sigma^2 up
    # to a share 8 pi^2 sigma^2 exp(-2 pi^2 sigma^2), below 1e-9 at sigma = 1.2; the edge, 10 sigma
    # away, adds no more unless noise goes 5 sigma towards it.
    side = np.arange(-12.0, 13.0)
    grid = np.array(list(itertools.product(*[side] * dim)))
    axes = np.linalg.qr(rng.standard_normal((6, dim)))[0].T
    x = rng.uniform(-0.5, 0.5, (3, dim)) @ axes + 100
    model = EmpiricalLID(1.2, at=at, n_noises=4, random_state=0).fit(grid @ axes + 100)
    lid, stderr = model.predict_with_stderr(x)
    np.testing.assert_allclose(lid, dim, rtol=1e-6)
    assert (stderr < 1e-6).all()


@pytest.mark.parametrize("at", ["x", "noised"])
def test_point_mass_has_lid_zero(at, rng):
    cloud = 200 * rng.standard_normal((50, 8))
    rows = np.concatenate([cloud, np.repeat(cloud[:1], 39, 0)])
    lid = EmpiricalLID(1.0, at=at, random_state=0).fit(rows).predict(cloud[:1])
    np.testing.assert_allclose(lid, 0, atol=1e-12)


def test_standard_error_is_calibrated_over_seeds(rng):
    rows, x = rng.standard_normal((60, 2)), np.zeros((1, 2))
    lids, errors = zip(
        *[
            EmpiricalLID(0.5, n_noises=8, random_state=s).fit(rows).predict_with_stderr(x)
            for s in range(150)
        ],
        strict=True,
    )
    # 150 draws know a variance to sqrt(2 / 150) for normal, about twice that for bounded-tail
    # draws; 4 of them.
    ratio = np.mean(np.square(errors)) / np.var(lids)
    assert abs(ratio - 1) < 4 * 2 * (2 / 150) ** 0.5


def test_wrong_scale_and_too_few_neighbours_warn(rng):
    rows = rng.standard_normal((100, 3))
    with pytest.warns(UserWarning, match="below the spacing of the reference at 5 of 5"):
        EmpiricalLID(1e-3, at="x").fit(rows).predict(rows[:5] + 1e-3)
    with pytest.warns(UserWarning, match="4 neighbours do not span sigma 1.0"):
        EmpiricalLID(1.0, at="x", n_neighbors=4).fit(rows).predict(rows[:5])


def test_fresh_noise_without_a_seed(rng):
    rows = rng.standard_normal((60, 2))
    first, second = (EmpiricalLID(0.5).fit(rows).predict(rows[:3]) for _ in range(2))
    assert not np.allclose(first, second)
    state = np.random.RandomState(0)
    model = EmpiricalLID(0.5, random_state=state).fit(rows)
    np.testing.assert_array_equal(model.predict(rows[:3]), model.predict(rows[:3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -1.0}, r"sigma is -1\.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"n_noises": 1}, "n_noises is 1"),
        ({"n_neighbors": 1}, "n_neighbors is 1"),
    ],
)
def test_refusals(change, message):
    model = EmpiricalLID(**{"sigma": 1.0, **change})
    with pytest.raises(InputError, match=message):
        model.fit(np.eye(5))
    model = EmpiricalLID(1.0)
    model.at = "y"
    with pytest.raises(InputError, match="'y'"):
        model.fit(np.eye(5))
