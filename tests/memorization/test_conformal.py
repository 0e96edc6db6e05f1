"""Validity of conformal p-values, from theory: exact at every attainable level."""

import numpy as np
import pytest
from scipy.stats import binom

from memfold.memorization.conformal import calibrate, q_values, share_interval
from memfold.types import InputError

SURE = 1e-4  # a test fails by chance this often at most


def brute_force(value, reference, z, reference_z):
    """One subject's p-value, by refitting without each row in turn."""
    x = np.column_stack([np.ones(len(reference) + 1), np.vstack([reference_z, z])])
    y = np.append(reference, value)

    def deleted(a, spread):
        """Weighted by 1 / spread^2, each row predicted by the others."""
        predicted = np.empty(len(a))
        for i in range(len(a)):
            others = np.arange(len(a)) != i
            w = 1 / spread[others]
            fit = np.linalg.lstsq(w[:, None] * x[others], w * a[others], rcond=None)[0]
            predicted[i] = x[i] @ fit
        return predicted

    spread = np.ones(len(y))
    for _ in range(2):
        residual = y - deleted(y, spread)
        floor = 0.25 * abs(residual).mean()
        spread = np.maximum(deleted(abs(residual), spread), floor)
    score = residual / spread
    return (score <= score[-1] + 1e-6).mean(), y[-1] - residual[-1]


@pytest.mark.parametrize("columns", [1, 3])
def test_agrees_with_refitting(columns):
    """The closed form is the refit, off the origin and on any scale of the features."""
    rng = np.random.default_rng(columns)
    z, zr = (1e4 + 300 * rng.normal(size=(k, columns)) for k in (7, 25))
    y, r = 20 + 6 * rng.normal(size=7), 25 + 3 * rng.normal(size=25)
    got = calibrate(y, r, features=z, reference_features=zr)
    want = np.array([brute_force(y[i], r, z[i], zr) for i in range(7)])
    np.testing.assert_allclose(got.p_value, want[:, 0])
    np.testing.assert_allclose(got.expected, want[:, 1], atol=3)


def null(rng, n, kind):
    """n exchangeable rows: the regression is wrong and the spread uneven, on purpose."""
    z = rng.lognormal(size=(n, 1))
    noise = {"normal": rng.normal(size=n), "heavy": rng.standard_t(2, n)}[kind]
    return z, 3 * np.sqrt(z[:, 0]) + (0.2 + z[:, 0]) * noise


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_exact_under_exchangeability(kind):
    """P(p <= k / (n + 1)) = k / (n + 1) for a continuous score: one subject a seed."""
    worlds, n = 800, 39
    rng = np.random.default_rng(7)
    p = np.empty(worlds)
    for i in range(worlds):
        z, y = null(rng, n + 1, kind)
        p[i] = calibrate(y[:1], y[1:], features=z[:1], reference_features=z[1:]).p_value[0]
    for level in (1 / 40, 2 / 40, 4 / 40, 0.5):
        hits = (p <= level + 1e-12).sum()
        assert binom.ppf(SURE, worlds, level) <= hits <= binom.isf(SURE, worlds, level)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_exact_in_any_population(kind):
    """Let each of 60 images be the subject in turn: exactly k of them have p <= k / 60."""
    z, y = null(np.random.default_rng(8), 60, kind)
    p = [
        calibrate(
            y[i : i + 1],
            np.delete(y, i),
            features=z[i : i + 1],
            reference_features=np.delete(z, i, 0),
        ).p_value[0]
        for i in range(60)
    ]
    np.testing.assert_allclose(np.sort(p), np.arange(1, 61) / 60)


def test_ties_are_conservative():
    """Whole-numbered LIDs tie; the p-value may only grow."""
    worlds = 300
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, (worlds, 20)).astype(float)
    p = np.array([calibrate(row[:1], row[1:]).p_value[0] for row in y])
    assert (p <= 0.05).sum() <= binom.isf(SURE, worlds, 0.05)
    assert calibrate(np.ones(1), np.ones(19)).p_value[0] == 1


def test_never_zero_and_one_for_all():
    """p is at least 1 / (n + 1), and a subject's p does not depend on the other subjects."""
    rng = np.random.default_rng(2)
    z, y = null(rng, 700, "normal")
    y[:300] -= 1e6 * (np.arange(300) % 2)
    many = calibrate(y[:600], y[600:], features=z[:600], reference_features=z[600:])
    assert many.p_value.min() == pytest.approx(1 / 101)
    for i in (0, 1, 257, 599):
        row = slice(i, i + 1)
        one = calibrate(y[row], y[600:], features=z[row], reference_features=z[600:])
        assert one.p_value[0] == many.p_value[i]
        assert one.expected[0] == pytest.approx(many.expected[i])


def test_rank_within_its_own_population():
    """A reference row is ranked among n, itself counted once; the lowest has p = 1 / n."""
    rng = np.random.default_rng(3)
    z, y = null(rng, 50, "normal")
    got = calibrate(y, y, features=z, reference_features=z, reference_index=np.arange(50)).p_value
    np.testing.assert_allclose(np.sort(got), np.arange(1, 51) / 50)


def test_order_of_the_reference_is_irrelevant():
    """Symmetry in the rows is what exactness rests on."""
    rng = np.random.default_rng(4)
    z, y = null(rng, 60, "heavy")
    shuffled = 10 + rng.permutation(50)
    a = calibrate(y[:10], y[10:], features=z[:10], reference_features=z[10:])
    b = calibrate(y[:10], y[shuffled], features=z[:10], reference_features=z[shuffled])
    np.testing.assert_allclose(a.p_value, b.p_value)
    np.testing.assert_allclose(a.spread, b.spread)


def test_expectation_and_spread():
    """On a linear world the expectation has its standard error, and the spread is the truth's."""
    rng = np.random.default_rng(5)
    at, z_scores, spreads = np.array([[12.0], [40.0]]), [], []
    for _ in range(200):
        z = rng.uniform(10, 50, (200, 1))
        y = 4 + z[:, 0] + 0.1 * z[:, 0] * rng.normal(size=200)
        got = calibrate(np.zeros(2), y, features=at, reference_features=z)
        z_scores.append((got.expected - 4 - at[:, 0]) / got.expected_stderr)
        spreads.append(got.spread)
    rms = np.sqrt(np.mean(np.square(z_scores), 0))
    np.testing.assert_allclose(rms, 1, atol=3.9 / np.sqrt(2 * 200) + 0.02)
    np.testing.assert_allclose(np.mean(spreads, 0), [1.2, 4.0], rtol=0.1)


def test_q_values_by_hand():
    """min over j >= i of m p_(j) / j; NaN is no test."""
    p = np.array([0.04, 0.01, np.nan, 0.03])
    np.testing.assert_allclose(q_values(p), [0.04, 0.03, np.nan, 0.04])
    assert np.isnan(q_values(np.array([np.nan]))).all()


def test_interval():
    """Clopper and Pearson: none of n has the upper end 1 - (0.025)^(1 / n)."""
    assert share_interval(0, 20)[1] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert share_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(
    ("n", "features"), [(2, 1), (30, 0)], ids=["too few images", "a constant feature"]
)
def test_degenerate_reference_is_refused(n, features):
    """What does not determine the regression is an error with a remedy."""
    rng = np.random.default_rng(6)
    zr = features * rng.normal(size=(n, 1))
    with pytest.raises(InputError, match="more reference images"):
        calibrate(np.zeros(1), rng.normal(size=n), features=np.ones((1, 1)), reference_features=zr)
