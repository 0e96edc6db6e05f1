"""What holds for every data-side estimator: the truth, as theory allows, and invariance."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memfold.datasets import manifolds
from memfold.lid._neighbors_base import CeilingWarning, PointMassWarning
from memfold.lid.corrint import CorrInt
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.ess import ESS
from memfold.lid.lpca import LPCA, Version
from memfold.lid.mle import MLE
from memfold.lid.mom import MOM
from memfold.lid.tle import TLE
from memfold.lid.twonn import TwoNN
from memfold.types import InputError
from tests.lid.test_neighbors_estimators import plane
from tests.oracles import seeded, unchecked

# For each: how to make it, and the relative bias that flat data leave it at k neighbours in d
# dimensions, besides its own standard error.
MEMBERS = {
    "mle": (MLE, 0.1),
    "twonn": (TwoNN, 0.1),
    "mom": (MOM, 0.12),
    "tle": (TLE, 0.15),  # pairs meet the edge of the ball
    "corrint": (CorrInt, 0.1),
    "ess": (lambda k=50, **kw: ESS(k, **kw), 0.1),
    "ess-b": (lambda k=50, **kw: ESS(k, version="b", **kw), 0.1),
    "ess-2": (lambda k=30, **kw: ESS(k, order=2, n_simplices=300, random_state=0, **kw), 0.1),
    "lpca": (lambda k=50, **kw: LPCA(k, **kw), 0.0),
    "ratio": (lambda k=50, **kw: LPCA(k, version="ratio", threshold=0.98, **kw), 0.0),
    # low by construction: of d equal variances 0.8 d exceed the share, or fewer
    "fan": (lambda k=50, **kw: LPCA(k, version="fan", **kw), 0.5),
    "minka": (lambda k=50, **kw: LPCA(k, version="minka", **kw), 0.0),
    "participation": (lambda k=50, **kw: LPCA(k, version="participation", **kw), 0.15),
}
FAMILY = [pytest.param(make, id=name) for name, (make, _) in MEMBERS.items()]


@pytest.mark.parametrize(("make", "bias"), MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_middle_of_a_flat_ball(make, bias, dim):
    # At its centre a uniform ball is what every method assumes. 20 balls of 300 points: the mean
    # is within 4 of its standard errors and the bias of the method.
    lids, errors = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((300, dim))
        x *= rng.uniform(size=(300, 1)) ** (1 / dim) / np.linalg.norm(x, axis=1, keepdims=True)
        axes = np.linalg.qr(rng.standard_normal((9, dim)))[0].T
        lid, stderr = make().fit(x @ axes + 7).predict_with_stderr(np.full((1, 9), 7.0))
        lids.append(lid[0])
        errors.append(stderr[0])
    assert np.isfinite(errors).all()
    spread = np.std(lids, ddof=1) / math.sqrt(20)
    truth = max(dim, getattr(make(), "order", 1))  # simplices of order m are flat below m
    assert abs(np.mean(lids) - truth) <= 4 * spread + bias * dim


@pytest.mark.parametrize(("make", "bias"), MEMBERS.values(), ids=MEMBERS)
def test_sphere(make, bias):
    # 600 points on a sphere of dimension 3, off the origin. Curvature lifts the cap of k = 50 of
    # 600 points by 1 - cos(0.5) = 0.1 radii: a fourth direction of a hundredth of the variance.
    samples = manifolds.sphere(3, 12, 600, generator=torch.Generator().manual_seed(0))
    lid, stderr = make().fit_predict_with_stderr(samples.x.numpy())
    assert np.isfinite(stderr).all()
    assert (stderr >= 0).all()
    assert abs(np.median(lid) - 3) < max(0.45, 3 * bias) or (np.median(lid) in (3, 4))


@pytest.mark.parametrize("make", FAMILY)
class TestInvariance:
    """What must not matter."""

    def test_rotation_shift_scale(self, make, rng):
        x = rng.standard_normal((80, 4))
        turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
        want = make().fit(x).predict_with_stderr(x[:5] + 0.1)
        moved = make().fit(3 * x @ turn + 50).predict_with_stderr(3 * (x[:5] + 0.1) @ turn + 50)
        np.testing.assert_allclose(moved, want, rtol=1e-6, atol=1e-6)

    def test_padding(self, make, rng):
        if getattr(make(), "version", "") in ("minka", "fan"):
            pytest.skip("the evidence, and the mean of what is noise, count the space's directions")
        x = rng.standard_normal((80, 4))
        want = make().fit_predict_with_stderr(x)
        padded = make().fit_predict_with_stderr(np.pad(x, [(0, 0), (3, 70)]))
        np.testing.assert_allclose(padded, want, rtol=1e-7, atol=1e-7)

    def test_batch_order_and_parts(self, make, rng, monkeypatch):
        x, q = np.split(plane(rng, 97, 3, 8), [90])
        want = make().fit(x).predict_with_stderr(q)
        monkeypatch.setattr("memfold.lid._neighbors_base._BYTES", 1)
        model = make().fit(x[rng.permutation(90)])
        alone = [model.predict_with_stderr(row[None]) for row in q]
        np.testing.assert_allclose(np.concatenate(alone, 1), want, rtol=1e-8, atol=1e-8)

    def test_each_row_is_left_out(self, make, rng):
        x = rng.standard_normal((60, 3))
        lid = make().fit_predict(x)
        if make not in (TwoNN,):  # whose neighbours keep x among their own
            k = min(make().n_neighbors, 58)
            others = make(k).fit(np.delete(x, 7, 0)).predict(x[7:8])
            np.testing.assert_allclose(others, make(k).fit_predict(x)[7], rtol=1e-9)
        assert np.isfinite(lid).all()

    def test_single_precision_agrees(self, make, rng):
        x = plane(rng, 70, 3, 8, offset=1.0).astype(np.float32)
        want = make().fit_predict(x.astype(np.float64))
        np.testing.assert_allclose(make().fit_predict(x), want, rtol=1e-3)


@pytest.mark.parametrize("make", FAMILY)
class TestPlaces:
    """Copies, near copies, ties."""

    def test_point_mass_is_zero_and_counted(self, make, rng):
        x = plane(rng, 150, 4, 10)
        x = np.concatenate([x, np.repeat(x[:1], 59, 0)])
        with pytest.warns(PointMassWarning, match="60 of 209 points"):
            lid, stderr = make().fit_predict_with_stderr(x)
        assert (lid[150:] == 0).all()
        assert (stderr[150:] == 0).all()
        assert (lid[1:150] > 0.5).all()
        assert np.isfinite(stderr).all()

    def test_pairs_of_copies_are_one_place(self, make, rng):
        x = plane(rng, 120, 3, 6)
        want = make().fit(x).predict(x[:4])
        np.testing.assert_allclose(
            make().fit(np.concatenate([x, x[:50], x[:50]])).predict(x[:4]), want, rtol=1e-9
        )

    def test_near_copies_leave_numbers(self, make, rng):
        x = plane(rng, 100, 3, 6, offset=1.0)
        x = np.concatenate([x, x[:20] + 1e-9 * rng.standard_normal((20, 6))])
        lid, stderr = make().fit_predict_with_stderr(x)
        assert np.isfinite(lid).all()
        assert np.isfinite(stderr).all()

    @pytest.mark.parametrize("x", [np.eye(12), np.arange(12.0)[:, None]], ids=["simplex", "line"])
    def test_ties_leave_numbers(self, make, x):
        model = make(8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lid, stderr = model.fit_predict_with_stderr(x)
        assert np.isfinite(lid).all()
        # equal distances bound nothing: the number is a lower bound, and says so
        bound = len(x) == x.shape[1] and not isinstance(model, ESS)
        assert [w.category for w in caught] == [CeilingWarning] * bound
        assert (np.isnan(stderr) if bound else np.isfinite(stderr)).all()
        assert np.isfinite(model.dimension_)


@pytest.mark.parametrize("make", FAMILY)
def test_refusals(make, rng):
    x = rng.standard_normal((80, 3))
    with pytest.raises(InputError, match=r"n_neighbors is 1: .* needs"):
        make(1).fit(x)
    with pytest.raises(InputError, match="NaN"):
        make().fit(np.where(x > 2, np.nan, x))
    with pytest.raises(InputError, match="expecting 3 features"):
        make().fit(x).predict(x[:, :2])
    with pytest.warns(UserWarning, match="the reference has 12 rows"):
        assert make(40).fit(x[:12]).n_neighbors_ == 11


EVERYWHERE = [
    *FAMILY,
    pytest.param(
        lambda k=9, **kw: EmpiricalLID(0.3, n_neighbors=k, random_state=0, **kw), id="emp"
    ),
]


@pytest.mark.parametrize("make", EVERYWHERE)
def test_device(make, rng):
    x = rng.standard_normal((80, 3))
    with pytest.raises(InputError, match="device is 'abacus'"):
        make(device="abacus").fit(x)
    assert clone(make(device="cpu")).device == "cpu"
    if torch.cuda.is_available():
        want = make().fit_predict(x)
        np.testing.assert_allclose(make(device="cuda").fit_predict(x), want, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:sigma 0.3 is below", "ignore:9 neighbours do not span")
@pytest.mark.parametrize("make", EVERYWHERE)
def test_faiss_finds_the_same_neighbours(make, rng):
    pytest.importorskip("faiss", reason="faiss is an extra: pip install 'memfold[faiss]'")
    x, q = np.split(plane(rng, 130, 3, 8), [123])
    x[100:110] = x[0] + 1e-9 * rng.standard_normal((10, 8))  # closer than float32 tells
    want = make().fit(x).predict_with_stderr(q)
    found = make(neighbors="faiss").fit(x).predict_with_stderr(q)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("make", EVERYWHERE)
def test_ways_of_searching_are_checked(make, rng, monkeypatch):
    x = rng.standard_normal((80, 3))
    wrong = make()
    wrong.neighbors = "annoy"
    with unchecked(), pytest.raises(InputError, match="neighbors is 'annoy': choose one of"):
        wrong.fit(x)
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if not installed
    with pytest.raises(InputError, match=r"pip install 'memfold\[faiss\]'"):
        make(neighbors="faiss").fit(x)


@pytest.mark.parametrize("make", FAMILY)
def test_pipeline_and_global_dimension(make, rng):
    x = plane(rng, 90, 2, 5)
    pipeline = make_pipeline(StandardScaler(with_std=False), make()).fit(x)
    assert pipeline.predict(x[:3]).shape == (3,)
    assert 0 < pipeline[-1].dimension_ < 6


@pytest.mark.parametrize("make", EVERYWHERE)
@pytest.mark.filterwarnings("ignore:sigma 0.3 is below", "ignore:9 neighbours do not span")
def test_pipeline_that_hands_over_frames(make, rng):
    pytest.importorskip("pandas", reason="set_output(transform='pandas') needs it")
    x = plane(rng, 90, 2, 5)
    want = make_pipeline(StandardScaler(with_std=False), make()).fit(x).predict(x[:3])
    frames = make_pipeline(StandardScaler(with_std=False), make()).set_output(transform="pandas")
    np.testing.assert_array_equal(frames.fit(x).predict(x[:3]), want)
    assert list(frames[-1].feature_names_in_) == [f"x{i}" for i in range(5)]


@pytest.mark.parametrize(
    "model",
    [MOM(), TLE(), CorrInt(), ESS(20), ESS(20, version="b")],
    ids=["mom", "tle", "corrint", "ess", "ess-b"],
)
@pytest.mark.parametrize("dim", [2, 5])
def test_standard_errors_have_the_right_size(model, dim):
    # 120 balls know the spread of LID to 6.5 %: 4 of these either way, and a jackknife over 10
    # groups or 20 neighbours may overstate it by half (Efron and Stein 1981), that of ESS by twice:
    # in a round neighbourhood its first-order term vanishes.
    lids, errors = [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((150, dim))
        x *= rng.uniform(size=(150, 1)) ** (1 / dim) / np.linalg.norm(x, axis=1, keepdims=True)
        lid, stderr = model.fit(x).predict_with_stderr(np.zeros((1, dim)))
        lids.append(lid[0])
        errors.append(stderr[0])
    ratio = math.sqrt(np.mean(np.square(errors))) / np.std(lids)
    assert 0.7 < ratio < (2.2 if isinstance(model, ESS) else 1.5)


# --- each method against its formula, written out a second time, and against other code


def neighbors_of(x, q, k):
    distance = np.linalg.norm(x - q, axis=1)
    order = np.argsort(distance)[:k]
    return x[order], distance[order]


@pytest.fixture
def cloud(rng):
    return rng.standard_normal((60, 5)), 0.3 * rng.standard_normal(5)


def test_mle_with_and_without_bias():
    # Exponential log-ratios: k - 2 in the numerator is right on average, k - 1 too high by 18 / 17
    # at k = 19. 200 balls of dimension 3 tell the two apart by 4 standard errors.
    lids = {True: [], False: []}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((150, 3))
        x *= rng.uniform(size=(150, 1)) ** (1 / 3) / np.linalg.norm(x, axis=1, keepdims=True)
        for correct, found in lids.items():
            model = MLE(19, bias_correction=correct).fit(x)
            found.append(model.predict(np.zeros((1, 3)))[0])
    np.testing.assert_allclose(np.divide(lids[False], lids[True]), 18 / 17, rtol=1e-12)
    spread = np.std(lids[True]) / math.sqrt(200)
    assert abs(np.mean(lids[True]) - 3) < 3 * spread
    assert MLE(19).fit(x).dimension_ == pytest.approx(
        MLE(19, bias_correction=False).fit(x).dimension_, rel=1e-12
    )


def test_twonn_whatever_was_asked_before(rng):
    # predict searches for the neighbours' ratios alone, dimension_ for all places' two neighbours,
    # fit_predict for all: the same numbers.
    x, q = np.split(plane(rng, 150, 3, 6), [140])
    lid = TwoNN().fit(x).predict(q)
    dimension = TwoNN().fit(x).dimension_
    model = TwoNN().fit(x)
    whole = model.fit_predict(x)
    np.testing.assert_array_equal(model.predict(q), lid)
    assert model.dimension_ == dimension
    surveyed = TwoNN().fit(x)
    assert surveyed.dimension_ == dimension
    np.testing.assert_array_equal(surveyed.predict(q), lid)
    np.testing.assert_array_equal(surveyed.fit_predict(x), whole)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.0])
def test_twonn_fit(cloud, fraction):
    # The published fit by least squares; at the last ratio of all, -log(1 - F) is infinite.
    x, _ = cloud
    ordered = np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)
    log_mu = np.sort(np.log(ordered[:, 2] / ordered[:, 1]))[: min(59, int(60 * fraction))]
    tail = -np.log(1 - np.arange(1, len(log_mu) + 1) / 60)
    want = np.linalg.lstsq(log_mu[:, None], tail)[0][0]
    assert TwoNN(fraction=fraction).fit(x).dimension_ == pytest.approx(want, rel=1e-10)


def test_mom_formula(cloud):
    _, r = neighbors_of(*cloud, 15)
    m = np.mean(r / r[-1])
    found = MOM(15).fit(cloud[0]).predict(cloud[1][None])[0]
    assert found == pytest.approx(m / (1 - m), rel=1e-12)


def test_tle_formula(cloud):
    x, q = cloud
    near, r = neighbors_of(x, q, 12)
    total = 2 * np.log(r / r[-1]).sum()
    for (i, v), w in itertools.product(enumerate(near), near):
        if v is w or np.array_equal(v, w):
            continue
        for other in (w, 2 * q - w):
            # The ball through v and `other` that touches the sphere about q of radius R.
            ball, big = r[i], r[-1]
            apart = np.linalg.norm(other - v)
            b = ball**2 + apart**2 - np.linalg.norm(other - q) ** 2
            if i == 11:
                t = big * apart**2 / b
            else:
                root = math.sqrt(b**2 + 4 * apart**2 * (big**2 - ball**2))
                t = big * (root - b) / (2 * (big**2 - ball**2))
            total += math.log(t / big)
    want = -2 * 12**2 / total
    assert TLE(12).fit(x).predict(q[None])[0] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("order", "version"), [(1, "a"), (1, "b"), (2, "a"), (3, "a")])
def test_ess_expectations_are_those_of_random_directions(order, version):
    # 20,000 random simplices in 6 dimensions: the mean to 4 standard errors.
    v = np.random.default_rng(1).standard_normal((20_000, order + 1, 6))
    gram = v @ v.transpose(0, 2, 1)
    lengths = np.linalg.norm(v, axis=2).prod(1)
    size = np.sqrt(np.linalg.det(gram)) if version == "a" else np.abs(gram[:, 0, 1])
    from memfold.lid.ess import _expected

    want = _expected(version, order)[6 - order]
    spread = np.std(size / lengths) / math.sqrt(20_000)
    assert abs(np.mean(size / lengths) - want) < 4 * spread


def test_ess_counts_all_pairs_and_triples(cloud):
    near, _ = neighbors_of(*cloud, 9)
    v = near - near.mean(0)
    for order in (1, 2):
        sets = [list(s) for s in itertools.combinations(range(9), order + 1)]
        volume = sum(math.sqrt(np.linalg.det(v[s] @ v[s].T)) for s in sets)
        weight = sum(np.linalg.norm(v[s], axis=1).prod() for s in sets)
        from memfold.lid.ess import _expected

        table = _expected("a", order).numpy()
        want = np.interp(volume / weight, table, order + np.arange(len(table)))
        found = ESS(9, order=order).fit(cloud[0]).predict(cloud[1][None])[0]
        assert found == pytest.approx(want, rel=1e-8)


def test_ess_draws_the_same_simplices_for_one_seed(cloud):
    x, q = cloud
    draws = [
        ESS(20, order=3, n_simplices=200, random_state=seed).fit(x).predict(q[None])[0]
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    simplices = ESS(20, order=3, n_simplices=200, random_state=1).fit(x)._choose(20)
    assert len({tuple(s) for s in simplices.tolist()}) == 200


def test_correlation_integral_counts_pairs(cloud):
    x, _ = cloud
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    ordered = np.sort(distance, axis=1)
    r1, r2 = np.median(ordered[:, 5]), np.median(ordered[:, 20])
    counts = [(distance <= r).sum() - len(x) for r in (r1, r2)]
    want = math.log(counts[1] / counts[0]) / math.log(r2 / r1)
    assert CorrInt(20, inner=5).fit(x).dimension_ == pytest.approx(want, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.* a LID that is not below")  # few neighbours
@pytest.mark.parametrize(
    "make",
    [
        lambda: LPCA(12),
        lambda: LPCA(12, version="ratio"),
        lambda: LPCA(12, version="participation"),
        lambda: ESS(12),
        lambda: ESS(12, version="b"),
    ],
    ids=["lpca", "ratio", "participation", "ess", "ess-b"],
)
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_shared_products_change_nothing(make, offset, rng, monkeypatch):
    # 100 rows of 40 columns at k = 12 share their products; 13 of them lie 1e-6 apart, where these
    # cancel and differences must take over.
    x = plane(rng, 100, 5, 40, offset=offset)
    x[80:93] = x[80] + 1e-6 * rng.standard_normal((13, 40))
    found = make().fit_predict(x)
    assert _shares(make().fit(x), x)
    monkeypatch.setattr("memfold.lid._neighbors_base._SHARED_BYTES", 0)
    want, _ = make().fit_predict_with_stderr(x)
    np.testing.assert_allclose(found, want, rtol=1e-7)


def _shares(model, x):
    near = model._neighborhood(model._places, True)
    parts = list(model._grams(model._places, near, False))
    return len(parts) == 2 and len(parts[0][0]) == 87 and len(parts[1][0]) == 13


def test_eigenvalues_at_the_threshold_are_counted_in_double_precision():
    # Variances 1, 0.05 (1 + 1e-9), 0.05 (1 - 1e-9): float32 cannot tell the last two apart.
    from memfold.lid.lpca import _above

    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=seeded())).Q
    values = [1, 0.05 * (1 + 1e-9), 0.05 * (1 - 1e-9), 0.01, 0.0, 0.0]
    values = torch.tensor(values, dtype=torch.float64)
    scatter = (turn * values) @ turn.mT
    assert _above(1e-30 * scatter[None], 0.05).tolist() == [2]
    assert _above(1e30 * scatter[None], 0.05).tolist() == [2]


def test_minka_agrees_with_scikit_learn(rng):
    from sklearn.decomposition import PCA

    for noise in (0.05, 0.3):
        x = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 10))
        x += noise * rng.standard_normal((60, 10))
        near, _ = neighbors_of(x, x[0] + 0.1, 40)
        want = PCA(n_components="mle", svd_solver="full").fit(near).n_components_
        assert LPCA(40, version="minka").fit(x).predict(x[:1] + 0.1)[0] == want


def test_fan_by_hand():
    # Variances 4, 3, 2, 0.1 in thirds of a cross: 95 % is exceeded at the third, and the mean from
    # there on is 1.05, so 2.95, 1.95, 0.95, -0.95; 0.8 of their sum 4.9 is passed at the second.
    cross = np.diag(np.sqrt([4, 3, 2, 0.1]))
    x = np.concatenate([cross, -cross, np.zeros((1, 4))])
    assert LPCA(8, version="fan").fit(x).fit_predict(x)[8] == 2
    steep = np.diag(np.sqrt([40, 1, 0.9, 0.8, 0.7, 0.6]))
    y = np.concatenate([steep, -steep, np.zeros((1, 6))])
    assert LPCA(12, version="fan").fit(y).fit_predict(y)[12] == 1


# `skdim.id.lPCA(ver="Fan").fit(points).dimension_` of scikit-dimension 0.5.0, on the k points of
# `plane_with_noise(d, D, k, noise, seed)`: Gaussian, then uniform
FAN = [
    (5, 5, 60, 0, 0, (3, 3)),
    (5, 5, 60, 0, 1, (3, 3)),
    (5, 5, 60, 0.05, 0, (3, 3)),
    (5, 5, 60, 0.05, 1, (3, 3)),
    (5, 12, 60, 0, 0, (3, 3)),
    (5, 12, 60, 0, 1, (3, 3)),
    (5, 12, 60, 0.05, 0, (4, 3)),
    (5, 12, 60, 0.05, 1, (3, 3)),
    (3, 20, 20, 0, 0, (2, 2)),
    (3, 20, 20, 0, 1, (2, 2)),
    (3, 20, 20, 0.05, 0, (2, 3)),
    (3, 20, 20, 0.05, 1, (2, 3)),
    (10, 30, 60, 0, 0, (6, 6)),
    (10, 30, 60, 0, 1, (6, 6)),
    (10, 30, 60, 0.05, 0, (6, 6)),
    (10, 30, 60, 0.05, 1, (6, 7)),
    (8, 200, 150, 0, 0, (6, 6)),
    (8, 200, 150, 0, 1, (6, 6)),
    (8, 200, 150, 0.05, 0, (6, 22)),
    (8, 200, 150, 0.05, 1, (6, 24)),
]


def plane_with_noise(d, space, k, noise, seed):
    r = np.random.RandomState(seed)
    points = []
    for draw in (r.standard_normal, lambda size: r.uniform(size=size)):
        flat = draw((k, d)) @ np.linalg.qr(r.standard_normal((space, d)))[0].T
        points.append(flat + noise * r.standard_normal((k, space)))
    return points


@pytest.mark.parametrize(("d", "space", "k", "noise", "seed", "want"), FAN)
def test_fan_is_scikit_dimensions(d, space, k, noise, seed, want):
    for x, number in zip(plane_with_noise(d, space, k, noise, seed), want, strict=True):
        reference = np.vstack([x, x[:1] + 1e3])  # so that all k points are neighbours
        assert LPCA(k, version="fan").fit(reference).predict(x.mean(0)[None]) == number


def test_options_are_checked():
    x = np.zeros((9, 2))
    third = ESS()
    third.version = "c"
    for model, match in {
        third: "choose 'a' or 'b'",
        ESS(order=0): "order is 0",
        ESS(order=2, version="b"): "order 1 only",
        ESS(4, order=3): "order 3 needs 5",
        ESS(n_simplices=0): "n_simplices is 0",
        CorrInt(10, inner=10): "inner is 10",
    }.items():
        with pytest.raises(InputError, match=match):
            model.fit(x)


@pytest.mark.parametrize("version", get_args(Version))
@pytest.mark.parametrize(("k", "seed"), [(50, 0), (30, 1)])
def test_local_pca_says_where_its_neighbours_do_not_suffice(version, k, seed):
    # d free directions: k of them or more look alike to k neighbours, far fewer do not
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((150, 150)))[0]
    model = LPCA(k, version=version)
    for d, bound in ((k // 5, False), (k // 2, False), (2 * k, True), (150, True)):
        x = rng.standard_normal((k + 1, d)) @ turn[:d]
        x[-1] += 1e3  # so that all others are neighbours of their centre
        fitted, center = model.fit(x + 7), np.full((1, 150), 7.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lid, stderr = fitted.predict_with_stderr(center)
        assert [w.category for w in caught] == [CeilingWarning] * bound, (d, lid)
        assert np.isnan(stderr[0]) == bound
        if bound:
            with pytest.warns(CeilingWarning, match=f"1 of 1 points .* not below the {k} n"):
                fitted.predict(center)


def test_a_space_that_is_filled_is_no_ceiling(rng):
    x = rng.standard_normal((400, 6))
    lid, stderr = LPCA(60).fit(x).predict_with_stderr(x[:5] / 4)
    assert (lid == 6).all()
    assert (stderr == 0).all()
