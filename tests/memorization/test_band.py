"""The band holds its rate over whole runs, whatever hangs together in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta

from memfold.memorization.band import Band, fit_band, prompts_needed
from memfold.types import InputError

SIGMAS = np.geomspace(11.0, 0.04, 12)


def runs(rng, n, images=None):
    """Scores with a common factor of each prompt, a walk over the steps, and skewed values."""
    shape = (n, 12) if images is None else (n, images, 12)
    common = rng.standard_normal((n, *[1] * (len(shape) - 1)))
    walk = rng.standard_normal(shape).cumsum(-1) / np.sqrt(np.arange(1, 13))
    return np.exp(0.3 * common + 0.2 * walk) * np.linspace(1, 3, 12)


def fires(band, table):
    limits = np.array([[band.limit(s, k) for s in SIGMAS] for k in band.scores])
    return (table > limits[:, None, None]).any((0, 2, 3))


@pytest.mark.parametrize(
    ("n", "alpha", "images", "scores"), [(19, 0.05, 1, 1), (99, 0.01, 1, 2), (60, 0.1, 3, 2)]
)
def test_the_rate_over_whole_runs_is_the_wanted_one(n, alpha, images, scores):
    """The mean over bands of the true rate is (n + 1 - rank) / (n + 1), up to order 1 / n."""
    rng, hits, total = np.random.default_rng(7), 0, 0
    for _ in range(60):
        made = [runs(rng, n, images) for _ in range(scores)]
        band = fit_band({f"s{k}": t for k, t in enumerate(made)}, SIGMAS, alpha=alpha)
        new = np.stack([runs(rng, 50, images) for _ in range(scores)])
        hits, total = hits + int(fires(band, new).sum()), total + 50
    # Bands differ: the rate of one is about Beta(k, n + 1 - k); the mean over 60 has this error.
    k = n + 1 - int(np.ceil((n + 1) * (1 - alpha) - 1e-9))
    spread = beta(k, n + 1 - k).std() / 60**0.5
    low, high = beta.ppf(0.0005, hits, total - hits + 1), beta.ppf(0.9995, hits + 1, total - hits)
    assert low - 4 * spread <= alpha <= high + 4 * spread


def test_one_limit_for_each_step_alone_would_not_hold_the_rate():
    """The check above can fail: the quantile of each step alone calls far too many runs."""
    rng = np.random.default_rng(3)
    apart = np.random.default_rng(4).standard_normal((2000, 12))  # steps that do not hang together
    single = np.quantile(rng.standard_normal((2000, 12)), 0.95, axis=0)
    band = fit_band(rng.standard_normal((2000, 12)) + 9, SIGMAS, alpha=0.05)
    limits = np.array([band.limit(s) for s in SIGMAS])
    assert (apart > single).any(1).mean() > 0.4
    assert abs((apart + 9 > limits).any(1).mean() - 0.05) < 0.02


def test_the_order_of_steps_and_units_do_not_matter():
    rng = np.random.default_rng(0)
    table = runs(rng, 40)
    a = fit_band(table, SIGMAS, alpha=0.1)
    b = fit_band(1000 * table[:, ::-1], SIGMAS[::-1], alpha=0.1)
    for sigma in (0.05, 0.7, 9.0):
        assert b.limit(sigma) == pytest.approx(1000 * a.limit(sigma), rel=1e-9)
    assert a.threshold == pytest.approx(b.threshold, rel=1e-9)


def test_between_steps_the_limit_is_linear_in_log_sigma_and_held_a_little_beyond():
    table = np.random.default_rng(0).standard_normal((20, 2)) + 5
    band = fit_band(table, np.array([4.0, 1.0]), alpha=0.1)
    assert band.limit(2.0) == pytest.approx((band.limit(1.0) + band.limit(4.0)) / 2)
    assert band.limit(4.9) == band.limit(4.0)
    assert band.limit(0.81) == band.limit(1.0)
    for sigma in (5.1, 0.79):
        with pytest.raises(InputError, match="calibrate with the steps"):
            band.limit(sigma)


def test_fires_above_the_limit_and_not_at_it():
    band = fit_band(np.random.default_rng(0).standard_normal((20, 12)), SIGMAS, alpha=0.1)
    limit = band.limit(1.0)
    assert not band.fires(1.0, limit)
    assert band.fires(1.0, np.nextafter(limit, np.inf))
    assert band.fires(1.0, {"cfg_norm": limit + 1})
    with pytest.raises(InputError, match="the band holds cfg_norm"):
        band.fires(1.0, {"other": 0.0})


@pytest.mark.parametrize(("alpha", "need"), [(0.01, 99), (0.05, 19), (0.5, 10)])
def test_too_few_prompts_are_refused_with_the_number_needed(alpha, need):
    assert prompts_needed(alpha) == need
    table = np.random.default_rng(0).standard_normal((need, 12))
    fit_band(table, SIGMAS, alpha=alpha)
    with pytest.raises(InputError, match=f"give {need} or more"):
        fit_band(table[1:], SIGMAS, alpha=alpha)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (np.full((20, 12), np.nan), "not finite"),
        ({}, "no scores"),
        ({"a": np.ones((20, 12)), "b": np.ones((20, 2, 12))}, "different shapes"),
    ],
)
def test_scores_that_make_no_band_are_refused(table, match):
    with pytest.raises(InputError, match=match):
        fit_band(table, SIGMAS, alpha=0.1)


def test_sigmas_must_differ():
    with pytest.raises(InputError, match="pass one sigma above 0 a step"):
        fit_band(np.ones((20, 12)), np.ones(12), alpha=0.1)


def test_a_saved_band_is_the_same_band(tmp_path):
    given = {"pipeline": "P", "digest": "blake2b:0", "guidance_scale": 3.0, "steps": 12}
    table = runs(np.random.default_rng(0), 30, 2)
    band = fit_band(table, SIGMAS, alpha=0.1, conditions=given)
    band.save(tmp_path / "band.json")
    assert Band.load(tmp_path / "band.json") == band
    assert (band.n, band.images, band.alpha) == (30, 2, 0.1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"memfold": "band"}', "[" * 5000])
def test_what_is_no_band_is_refused_in_a_line(tmp_path, text):
    file = tmp_path / "band.json"
    file.write_text(text)
    with pytest.raises(InputError, match="is no band; write it with memfold calibrate"):
        Band.load(file)


def test_a_band_that_lost_a_number_is_refused(tmp_path):
    file = tmp_path / "band.json"
    fit_band(runs(np.random.default_rng(0), 30), SIGMAS, alpha=0.1).save(file)
    found = json.loads(file.read_text())
    found["centre"]["cfg_norm"].pop()
    file.write_text(json.dumps(found))
    with pytest.raises(InputError, match="is no band"):
        Band.load(file)


def test_other_conditions_are_refused_and_unknown_ones_pass():
    given = {"guidance_scale": 3.0, "digest": "a"}
    band = fit_band(runs(np.random.default_rng(0), 20), SIGMAS, alpha=0.1, conditions=given)
    band.check(guidance_scale=3.0, digest="a", device="cpu")
    band.check(guidance_scale=None)
    with pytest.raises(InputError, match=r"guidance_scale = 3\.0, and here it is 7.5"):
        band.check(guidance_scale=7.5)
