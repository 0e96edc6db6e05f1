"""One contract over LPCA, MLE, TwoNN and EmpiricalLID; then what theory says of each.

The contract of the whole family, with the true dimension, is in test_neighbors_contract.py.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memfold.lid._neighbors_base import CeilingWarning, PointMassWarning
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.twonn import TwoNN
from memfold.types import InputError
from tests.oracles import unchecked

BY_DISTANCE = [
    pytest.param(make, id=name)
    for name, make in {
        "mle": MLE,
        "twonn": TwoNN,
        "lpca": lambda n_neighbors=20: LPCA(n_neighbors),
        "ratio": lambda n_neighbors=20: LPCA(n_neighbors, version="ratio"),
        "participation": lambda n_neighbors=20: LPCA(n_neighbors, version="participation"),
    }.items()
]
FAMILY = [
    *BY_DISTANCE,
    pytest.param(lambda n_neighbors=None: EmpiricalLID(0.3, random_state=0), id="noised"),
    pytest.param(lambda n_neighbors=None: EmpiricalLID(0.3, at="x"), id="x"),
]


def plane(rng, n, dim, ambient, offset=100.0):
    """A Gaussian on a rotated affine subspace, off the origin."""
    axes = np.linalg.qr(rng.standard_normal((ambient, dim)))[0].T
    return rng.standard_normal((n, dim)) @ axes + offset * rng.standard_normal(ambient)


def test_scikit_learn_accepts_them():
    # In a process of its own: scikit-learn passes what our types forbid, and looks whether the
    # estimator itself refuses it, while pytest's type checks would refuse it first.
    code = """
from sklearn.utils.estimator_checks import check_estimator
from memfold import ESS, LPCA, MLE, MOM, TLE, CorrInt, EmpiricalLID, TwoNN
versions = ("fukunaga-olsen", "fan", "ratio", "participation", "minka")
lpca = [LPCA(version=version) for version in versions]
ess = [ESS(), ESS(version="b"), ESS(order=2, n_simplices=50, random_state=0)]
others = [MLE(), TwoNN(), MOM(), TLE(), CorrInt(), EmpiricalLID(1.0, random_state=0)]
for model in [*lpca, *ess, *others]:
    check_estimator(model)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_import_of_memfold_leaves_scikit_learn_alone():
    code = "import sys, memfold; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("make", FAMILY)
class TestContract:
    """What holds for every member."""

    def test_batch_and_order_change_nothing(self, make, rng):
        x, q = np.split(plane(rng, 90, 2, 5) / 4, [83])
        model = make().fit(x)
        lid, stderr = model.predict_with_stderr(q)
        alone = [model.predict_with_stderr(row[None]) for row in q]
        np.testing.assert_allclose(lid, [a[0][0] for a in alone], rtol=1e-9)
        np.testing.assert_allclose(stderr, [a[1][0] for a in alone], rtol=1e-9, atol=1e-9)
        shuffled = make().fit(x[rng.permutation(83)])
        np.testing.assert_allclose(shuffled.predict(q), lid, rtol=1e-9)
        np.testing.assert_allclose(model.predict(q), lid, rtol=1e-12)

    @pytest.mark.parametrize("size", [1, 300_000])
    def test_chunks_change_nothing(self, make, size, rng, monkeypatch):
        x, q = np.split(plane(rng, 90, 2, 5) / 4, [79])
        want = make().fit(x).predict_with_stderr(q)
        monkeypatch.setattr("memfold.lid._neighbors_base._BYTES", size)
        monkeypatch.setattr("memfold.lid.empirical._BYTES", size)
        found = make().fit(x).predict_with_stderr(q)
        assert found[0].shape == found[1].shape == (11,)
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)

    def test_each_point_itself_is_left_out(self, make, rng):
        x = rng.standard_normal((40, 3)) / 3
        model = make()
        lid, stderr = model.fit_predict_with_stderr(x)
        assert lid.shape == stderr.shape == (40,)
        np.testing.assert_allclose(lid, make().fit_predict(x), rtol=1e-9)
        for i in (0, 17):
            others = make(None if model.n_neighbors is None else 20).fit(np.delete(x, i, 0))
            if not isinstance(model, TwoNN):  # TwoNN's neighbours keep x among their neighbours
                np.testing.assert_allclose(others.predict(x[i : i + 1]), lid[i], rtol=1e-9)

    def test_rotation_shift_and_padding_change_nothing(self, make, rng):
        if getattr(make(), "at", "x") == "noised":
            pytest.skip("noise moves with the content of the points")
        x, q = rng.standard_normal((50, 3)) / 3, rng.standard_normal((4, 3)) / 3
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        want = make().fit(x).predict(q)
        moved = make().fit(x @ turn + 50).predict(q @ turn + 50)
        np.testing.assert_allclose(moved, want, rtol=1e-6)
        padded = make().fit(np.pad(x, [(0, 0), (2, 9)])).predict(np.pad(q, [(0, 0), (2, 9)]))
        np.testing.assert_allclose(padded, want, rtol=1e-9)

    def test_clone_pickle_pipeline(self, make, rng):
        x = plane(rng, 50, 2, 4, offset=0.0) / 5
        model = make().fit(x)
        want = model.predict(x)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x), want)
        np.testing.assert_array_equal(clone(model).fit(x).predict(x), want)
        pipeline = make_pipeline(StandardScaler(with_std=False), make()).fit(x)
        assert pipeline.predict(x).shape == (50,)
        assert np.isfinite(model.dimension_)
        assert model.n_features_in_ == 4

    def test_arguments_are_not_written_to(self, make, rng):
        x = rng.standard_normal((40, 3)) / 3
        before = x.copy()
        make().fit(x).predict(x)
        make().fit_predict_with_stderr(x)
        np.testing.assert_array_equal(x, before)

    def test_refuses_before_fit_and_wrong_width(self, make, rng):
        with pytest.raises(NotFittedError):
            make().predict(np.zeros((2, 2)))
        assert not hasattr(make(), "dimension_")
        model = make().fit(rng.standard_normal((30, 3)) / 3)
        with pytest.raises(InputError, match="expecting 3 features"):
            model.predict(np.zeros((2, 5)))
        with pytest.raises(InputError, match="NaN"):
            model.predict(np.full((2, 3), np.nan))


@pytest.mark.parametrize("make", BY_DISTANCE)
class TestPointMass:
    """The rule of the base class, off the origin."""

    def world(self, rng, copies=40):
        """A 5-dimensional cloud of 200 rows, one of which stands `copies` times."""
        x = plane(rng, 200, 5, 12)
        return np.concatenate([x, np.repeat(x[:1], copies - 1, 0)])

    def test_repeated_row_has_lid_zero_and_the_others_do_not(self, make, rng):
        x = self.world(rng)
        with pytest.warns(PointMassWarning, match="40 of 239 points"):
            lid, stderr = make().fit_predict_with_stderr(x)
        same = (x == x[0]).all(1)
        assert (lid[same] == 0).all()
        assert (stderr[same] == 0).all()
        assert (lid[~same] > 1).all()
        assert np.isfinite(lid).all()

    @pytest.mark.parametrize("eps", [1e-2, 1e-5, 1e-9])
    def test_near_copy_of_a_repeated_row_has_lid_zero(self, make, rng, eps):
        x = self.world(rng)
        copy = x[:1] + eps * rng.standard_normal((3, 12)) / 12**0.5
        with pytest.warns(PointMassWarning, match="3 of 3 points"):
            lid, stderr = make().fit(x).predict_with_stderr(copy)
        assert (lid == 0).all()
        assert (stderr == 0).all()

    def test_far_copies_do_not_make_a_lone_point_a_point_mass(self, make, rng):
        x = self.world(rng)
        lone = x[:1] + 30 * rng.standard_normal((1, 12))
        assert make().fit(x).predict(lone)[0] > 0.5

    def test_a_few_copies_are_one_place(self, make, rng):
        x = plane(rng, 100, 3, 6)
        want = make().fit(x).predict(x[:5])
        doubled = make().fit(np.concatenate([x, x[:30], x[:30]]))
        np.testing.assert_allclose(doubled.predict(x[:5]), want, rtol=1e-9)

    def test_nothing_but_copies(self, make):
        x = np.full((30, 4), 7.0)
        with pytest.warns(PointMassWarning, match="30 of 30"):
            lid = make().fit_predict(x)
        assert (lid == 0).all()
        with pytest.warns(PointMassWarning):
            assert make().fit(x).dimension_ == 0

    def test_two_places(self, make):
        x = np.repeat([[0.0, 1.0], [3.0, 4.0]], 20, 0)
        with pytest.warns(PointMassWarning):
            lid, stderr = make().fit_predict_with_stderr(x)
        assert (lid == 0).all()
        assert (stderr == 0).all()


@pytest.mark.parametrize("make", [MLE, TwoNN])
def test_equal_distances_give_the_dimension_of_the_space(make):
    with pytest.warns(CeilingWarning, match="15 of 15 points .* lower bound"):
        lid, stderr = make(10).fit_predict_with_stderr(np.eye(15))
    np.testing.assert_allclose(lid, 15)
    assert np.isnan(stderr).all()


@pytest.mark.parametrize("make", [MLE, TwoNN])
def test_too_many_neighbours_warn_and_too_few_refuse(make, rng):
    x = rng.standard_normal((12, 2))
    with pytest.warns(UserWarning, match="n_neighbors is 20 but the reference has 12 rows"):
        assert make().fit(x).n_neighbors_ == 11
    with pytest.raises(InputError, match="n_neighbors is 1"):
        make(1).fit(x)
    with pytest.raises(InputError, match="minimum of"):
        make().fit(x[:2])


@pytest.mark.parametrize("make", [MLE, TwoNN])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_standard_errors_are_calibrated(make, dim):
    # The mean of 150 z is within 4 / sqrt(150) of 0, and their variance within 4 sqrt(2 / 150)
    # of 1, widened by a tenth for the Pareto tail of 1 / Gamma and for density within the ball.
    z = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        axes = np.linalg.qr(rng.standard_normal((6, dim)))[0].T
        x = rng.uniform(-1, 1, (250, dim)) @ axes + 30
        lid, stderr = make(20).fit(x).predict_with_stderr(np.full((1, 6), 30.0))
        z.append((lid[0] - dim) / stderr[0])
    assert abs(np.mean(z)) < 4 / 150**0.5 + 0.1
    assert abs(np.var(z) - 1) < 4 * (2 / 150) ** 0.5 + 0.1


@pytest.mark.parametrize("dim", [1, 3])
def test_global_dimension(dim):
    # n places give about n / 1.2^2 independent ratios: relative error 1.2 / sqrt(n), 4 of them,
    # and 3 % for edges and curvature of a sphere's cap at this density.
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2000, dim + 1))
    x = x / np.linalg.norm(x, axis=1, keepdims=True) @ rng.standard_normal((dim + 1, 9)) + 4
    for model in (MLE(10), TwoNN()):
        assert model.fit(x).dimension_ == pytest.approx(dim, rel=4 * 1.2 / 2000**0.5 + 0.03)


def test_mackay_average_is_the_harmonic_mean(rng):
    x = rng.standard_normal((80, 2))
    model = MLE(12)
    lid = model.fit_predict(x)
    naive = lid * 11 / 10
    assert model.dimension_ == pytest.approx(1 / np.mean(1 / naive), rel=1e-12)
    assert MLE(12).fit(x).dimension_ == pytest.approx(model.dimension_, rel=1e-12)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_pooling_by_the_mean(rng, bias_correction):
    x = np.concatenate([rng.standard_normal((80, 2)), np.zeros((15, 2))])
    model = MLE(12, bias_correction=bias_correction, pooling="mean")
    with pytest.warns(PointMassWarning):
        lid = model.fit_predict(x)
    assert (lid == 0).sum() == 15
    assert model.dimension_ == pytest.approx(lid[lid > 0].mean(), rel=1e-12)
    with unchecked(), pytest.raises(InputError, match="pooling is 'median': choose one of"):
        MLE(12, pooling="median").fit(x)


@pytest.mark.parametrize("version", ["fukunaga-olsen", "ratio"])
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_lpca_counts_a_subspace_exactly(version, dim, rng):
    x = plane(rng, 150, dim, 20)
    threshold = None if version == "fukunaga-olsen" else 0.999
    model = LPCA(100, version=version, threshold=threshold).fit(x)
    lid, stderr = model.predict_with_stderr(x[:6])
    assert (lid == dim).all()  # not dim + 1, not ambient - dim: the order of the spectrum
    assert (stderr == 0).all()


def test_participation_ratio_expects_d_over_one_plus_d_over_k():
    ratios, errors = [], []
    for seed in range(100):
        x = plane(np.random.default_rng(seed), 61, 4, 10)
        model = LPCA(60, version="participation").fit(x)
        lid, stderr = model.predict_with_stderr(x[:1])
        ratios.append(lid[0])
        errors.append(stderr[0])
    # 60 centred samples; the next order of the expansion is (d / k)^2, about 0.02.
    assert np.mean(ratios) == pytest.approx(4 / (1 + 4 / 60), abs=0.05)
    # 100 draws know their own spread to 7 %; the jackknife is conservative by design
    # (Efron and Stein 1981): up to half more, and not less than 20 % too small.
    assert 0.8 < np.mean(np.square(errors)) ** 0.5 / np.std(ratios) < 1.6


def test_lpca_refuses():
    model = LPCA()
    model.version = "largest"
    with pytest.raises(InputError, match="'largest': choose one of"):
        model.fit(np.zeros((5, 2)))
    with pytest.raises(InputError, match=r"threshold is 2\.0"):
        LPCA(threshold=2.0).fit(np.zeros((5, 2)))


def test_unknown_options_are_errors():
    for make in (MLE, TwoNN, LPCA):
        with pytest.raises(TypeError):
            make(neighbours=3)


def test_lids_of_several_subspaces_are_told_apart():
    rng = np.random.default_rng(0)
    x = np.concatenate([plane(rng, 300, d, 40) for d in (1, 4)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lid = MLE().fit_predict(x)
    assert not caught
    # A Gaussian's density falls across the ball, which biases MLE low by some 5 to 10 %; its mean
    # over 300 correlated points has a standard error of about d / sqrt(300 * 20 / 20).
    for d, part in ((1, lid[:300]), (4, lid[300:])):
        assert np.mean(part) == pytest.approx(d, rel=0.1 + 4 / 300**0.5)
