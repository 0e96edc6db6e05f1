"""The verdict: false calls, power, kinds, and every border."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.stats import binom

from memfold.memorization.mmh import judge
from memfold.types import Estimate, InputError
from tests.memorization.worlds import estimate, world

SURE = 1e-4  # a test fails by chance this often at most
ALPHA = 0.05


def test_false_calls_when_nothing_is_memorized():
    """No call in at least 1 - alpha of the worlds: subjects share a reference; the law is skewed."""
    worlds = 400
    called = [judge(**world(s, m=30, n=150).arguments()).memorized.any() for s in range(worlds)]
    assert sum(called) <= binom.isf(SURE, worlds, ALPHA)


def test_false_discovery_rate_among_memorized():
    """The mean share of false calls is below alpha, with a tenth or half of them memorized."""
    for bad in (10, 50):
        share, hits = [], 0
        for seed in range(150):
            memorized = judge(**world(seed, overfitting=bad, n=500).arguments()).memorized
            share.append(memorized[bad:].sum() / max(1, memorized.sum()))
            hits += memorized[:bad].sum()
        error = np.std(share) / np.sqrt(len(share))
        assert np.mean(share) <= ALPHA + 3.7 * error
        assert hits / (150 * bad) > 0.9  # the lowest complexities cannot stand out


def simple(seed):
    """As many simple held-out subjects as there are in the lowest decile of complexity."""
    w = world(seed, m=500, n=1000)
    lowest = w.complexity[:, 0] <= np.quantile(w.reference_complexity, 0.1)
    return w, lowest


def test_simple_images_are_not_called_memorized():
    """Without the correction the simplest images take the false calls; with it they do not."""
    corrected = uncorrected = trials = 0
    for seed in range(40):
        w, lowest = simple(seed)
        trials += lowest.sum()
        corrected += judge(**w.arguments()).p_value[lowest].__le__(ALPHA).sum()
        none = {"complexity": None, "reference_complexity": None}
        uncorrected += judge(**w.arguments(**none)).p_value[lowest].__le__(ALPHA).sum()
    assert corrected <= binom.isf(SURE, trials, ALPHA)
    assert uncorrected > 5 * ALPHA * trials


def test_a_batch_of_simple_images():
    """Twenty simple images alone: called without the correction, and left alone with it."""
    called = missed = 0
    for seed in range(20):
        w, lowest = simple(seed)
        pick = np.flatnonzero(lowest)[:20]
        few = {
            "model": estimate(w.model[pick] * 0.5 + 1),  # simple and smooth, at its own law's foot
            "data": estimate(w.data[pick]),
        }
        assert len(pick) == 20
        model = {"model": estimate(w.model[pick]), "data": few["data"]}
        with_it = judge(**w.arguments(complexity=w.complexity[pick], **model))
        without = judge(
            **w.arguments(complexity=None, reference_complexity=None, **model), alpha=0.2
        )
        called += without.memorized.any()
        missed += with_it.memorized.any()
    assert missed <= binom.isf(SURE, 20, ALPHA)
    assert called >= 15


def test_kinds_are_told_apart():
    """Overfitted and duplicated images, in one batch with fair ones."""
    v = judge(**world(3, overfitting=20, duplicated=20, n=1000).arguments())
    fair = v.complexity if hasattr(v, "complexity") else world(3, 100, 1000, 20, 20).complexity
    rich = fair[:, 0] > 20
    kind = v.kind.astype(str)
    assert (kind[:20][rich[:20]] == "overfitting").mean() > 0.85
    assert (kind[20:40][rich[20:40]] == "data").all()
    assert (kind[40:] == "none").mean() > 0.85
