"""Detector numbers against definitions written out by hand."""

import numpy as np
import pytest
import torch

from memfold.memorization.evaluate import (
    auroc,
    bootstrap,
    calibration,
    compare,
    roc,
    tpr_at_fpr,
)
from memfold.types import InputError


def test_auroc_is_the_chance_of_a_right_order():
    rng = np.random.default_rng(0)
    score, y = rng.integers(0, 10, 60), rng.random(60) < 0.4
    pairs = score[y][:, None] - score[~y][None]
    assert auroc(score, y) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auroc(-score, y) == pytest.approx(1 - auroc(score, y))


def test_tpr_is_read_at_a_threshold_that_exists():
    """With 50 negatives no rate lies between 0 and 0.02: at 0.01 none may pass, ties included."""
    negative, positive = np.arange(50.0), np.array([49.0, 49.5, 60.0, 3.0])
    score, y = np.concatenate([negative, positive]), np.arange(54) >= 50
    assert tpr_at_fpr(score, y, 0.01) == 0.5
    assert tpr_at_fpr(score, y, 0.02) == 0.75
    assert tpr_at_fpr(np.zeros(54), y, 0.5) == 0


def test_roc_counts():
    score, y = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    fpr, tpr, threshold = roc(score, y)
    for f, t, c in zip(fpr, tpr, threshold, strict=True):
        assert (f, t) == ((score[~y] >= c).mean(), (score[y] >= c).mean())


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    score, y = np.round(rng.normal(size=300), 1), rng.random(300) < 0.3
    assert auroc(score, y) == pytest.approx(metrics.roc_auc_score(y, score))
    for got, want in zip(
        roc(score, y), metrics.roc_curve(y, score, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_bootstrap_draws_families_together():
    """Ten copies of each image carry no more information than one: the interval is as wide."""
    rng = np.random.default_rng(1)
    y = np.arange(60) < 30
    score = rng.normal(size=60) + y
    g = torch.Generator().manual_seed(0)
    alone = bootstrap(auroc, score, y, resamples=300, generator=g)
    copies = (np.repeat(score, 10), np.repeat(y, 10))
    families = bootstrap(auroc, *copies, np.repeat(np.arange(60), 10), resamples=300, generator=g)
    naive = bootstrap(auroc, *copies, resamples=300, generator=g)
    assert alone[0] < auroc(score, y) < alone[1]
    assert np.diff(families) == pytest.approx(np.diff(alone), rel=0.2)
    assert np.diff(naive) < 0.5 * np.diff(alone)


def test_bootstrap_is_repeatable_and_its_generator_moves_on():
    rng = np.random.default_rng(2)
    arguments = (auroc, rng.normal(size=40), np.arange(40) < 15)
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = bootstrap(*arguments, resamples=50, generator=a)
    assert first == bootstrap(*arguments, resamples=50, generator=b)
    assert first != bootstrap(*arguments, resamples=50, generator=a)


def test_compare_by_hand():
    truth = ["data", "data", "data", "overfitting", "overfitting", "none", "none", "none"]
    kinds = ["data", "overfitting", "undetermined", "overfitting", "none", "none", "none", "data"]
    c = compare(kinds, np.array(truth))
    assert c.confusion["data"] == {"overfitting": 1, "data": 1, "none": 0, "undetermined": 1}
    assert (c.precision["data"].hits, c.precision["data"].trials) == (1, 2)
    assert (c.recall["data"].hits, c.recall["data"].trials) == (1, 3)
    assert c.precision["memorized"].value == 3 / 4
    assert c.recall["memorized"].value == 3 / 5
    assert sum(sum(row.values()) for row in c.confusion.values()) == 8
    assert c.recall["memorized"].interval[0] == pytest.approx(0.1466, abs=1e-4)  # tables


def test_nothing_called_has_no_precision():
    c = compare(["none"], ["data"])
    assert np.isnan(c.precision["data"].value)
    assert c.precision["data"].interval == (0, 1)


def test_calibration_counts_levels_inclusively():
    shares = calibration([0.01, 0.05, 0.5, np.nan], (0.01, 0.05))
    assert [(s.hits, s.trials) for s in shares] == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: auroc([1.0, 2.0], [True, True]), "both classes"),
        (lambda: auroc([1.0, np.nan], [True, False]), "not finite"),
        (lambda: auroc([1.0], [True, False]), "differ"),
        (lambda: compare(["data"], ["data", "none"]), "1 verdicts and 2 truths"),
        (lambda: compare(["Data"], ["data"]), "unknown kinds"),
        (lambda: bootstrap(auroc, [1.0, 2.0], [True, False], [0, 0]), "family of its own"),
    ],
)
def test_errors(call, match):
    with pytest.raises(InputError, match=match):
        call()
