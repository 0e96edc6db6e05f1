"""The verdict: false calls, power, kinds, and every border."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from memfold.memorization.mmh import judge
from tests.memorization.worlds import estimate, world

SURE = 1e-4  # a test fails by chance this often at most
ALPHA = 0.05
UNCORRECTED = {"complexity": None, "reference_complexity": None}


def test_false_calls_when_nothing_is_memorized():
    """All calls are false, so that FDR is the chance of any: at most alpha, over many seeds.

    With n = 210 one subject below the whole reference is a call: 10 / 211 is just below alpha.
    """
    worlds = 200
    called = [judge(**world(s, m=10, n=210).arguments()).memorized.any() for s in range(worlds)]
    assert sum(called) <= binom.isf(SURE, worlds, ALPHA)


@pytest.mark.parametrize("bad", [10, 50])
def test_false_discovery_rate_and_power(bad):
    """The mean share of false calls, with a tenth and with half of the subjects memorized."""
    share, hits, worlds = [], 0, 50
    for seed in range(worlds):
        memorized = judge(**world(seed, overfitting=bad, n=500).arguments()).memorized
        share.append(memorized[bad:].sum() / max(1, memorized.sum()))
        hits += memorized[:bad].sum()
    assert np.mean(share) <= ALPHA + 3.7 * np.std(share) / np.sqrt(worlds)
    assert hits > 0.9 * worlds * bad


def test_simple_images_are_not_called_memorized():
    """Twenty of the simplest held-out images: most are called without the correction."""
    corrected, uncorrected, worlds = 0, [], 40
    for seed in range(worlds):
        w = world(seed, m=20, n=1000, simple=True)
        corrected += judge(**w.arguments()).memorized.any()
        uncorrected.append(judge(**w.arguments(**UNCORRECTED)).memorized.mean())
    assert corrected <= binom.isf(SURE, worlds, ALPHA)
    assert np.mean(uncorrected) > 0.5


def test_the_lowest_decile_of_a_fair_sample():
    """p-values of simple subjects alone are valid only with the correction."""
    p, raw = [], []
    for seed in range(15):
        w = world(seed, m=200, n=500)
        lowest = w.complexity[:, 0] <= np.quantile(w.reference_complexity, 0.1)
        p.append(judge(**w.arguments()).p_value[lowest])
        raw.append(judge(**w.arguments(**UNCORRECTED)).p_value[lowest])
    p, raw = np.concatenate(p), np.concatenate(raw)
    assert (p <= ALPHA).sum() <= binom.isf(SURE, len(p), ALPHA)
    assert (raw <= ALPHA).mean() > 5 * ALPHA


def test_kinds_are_told_apart():
    w = world(3, overfitting=20, duplicated=20, n=1000)
    v = judge(**w.arguments())
    assert (v.kind[:20] == "overfitting").mean() > 0.8
    assert (v.kind[20:40] == "data").mean() > 0.8
    assert (v.kind[40:] == "none").mean() > 0.9
    assert v.memorized[:40].mean() > 0.9
    assert v.reason[0] == ""
    assert v.trusted[0]


def test_a_duplicate_that_the_model_did_not_memorize_is_none():
    w = world(4, n=1000)
    data = np.where(np.arange(100) < 50, 0, w.data)
    v = judge(**w.arguments(data=estimate(data)))
    assert (v.p_data[:50] <= ALPHA).all()
    assert not v.memorized.any()


def test_missing_degrees_of_freedom_and_their_error():
    """(missing - truth) / stderr has mean 0 and variance 1 over images and worlds."""
    rng, z = np.random.default_rng(0), []
    for seed in range(60):
        w = world(seed, m=50, overfitting=50)
        seen = w.model + rng.normal(0, 2, 50)
        v = judge(**w.arguments(model=estimate(seen, 2.0)))
        z.append((v.missing_dof - (w.fair_model - w.model)) / v.missing_dof_stderr)
    z, worlds = np.array(z), 60
    assert abs(z.mean()) < 3.9 * z.mean(1).std() / np.sqrt(worlds)
    variance = (z**2).mean(1)
    assert abs(variance.mean() - 1) < 3.9 * variance.std() / np.sqrt(worlds) + 0.05


def exact_lid(points, x, sigma, noise):
    """Denoising-loss LID E |x - D(x + sigma n)|^2 / sigma^2 of the empirical law of the points."""
    y = x[:, None] + sigma * noise
    near = -((y[:, :, None] - points) ** 2).sum(-1) / (2 * sigma**2)
    w = np.exp(near - near.max(-1, keepdims=True))
    loss = ((x[:, None] - w @ points / w.sum(-1, keepdims=True)) ** 2).sum(-1) / sigma**2
    return estimate(loss.mean(1), torch.tensor(loss.std(1, ddof=1) / np.sqrt(loss.shape[1])))


def mle(points, x, k=20):
    """Levina and Bickel's LID from the distances to k points, x itself left out; 0 on copies."""
    r = np.sort(np.linalg.norm(x[:, None] - points, axis=-1), 1)[:, 1 : k + 1]
    copies = r[:, -1] == 0
    r[copies] = np.arange(1.0, k + 1)
    lid = np.where(copies, 0, (k - 2) / np.log(r[:, -1:] / r[:, :-1]).sum(1))
    return estimate(lid, torch.tensor(lid / np.sqrt(k)))


def circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def test_both_kinds_on_a_circle_with_a_point_mass():
    """Ross et al., section 3: an isolated training point is overfitted, the point mass is data."""
    rng = np.random.default_rng(1)
    learned = circle(rng.uniform(0.5, 2 * np.pi - 0.5, 1500))  # the arc round (1, 0) is missing,
    learned = np.concatenate([learned, circle(np.zeros(1)), np.zeros((200, 2))])  # but for (1, 0)
    data = np.concatenate([circle(rng.uniform(0, 2 * np.pi, 1500)), circle(np.zeros(1))])
    data = np.concatenate([data, np.zeros((100, 2))])
    x = np.concatenate([circle(np.zeros(1)), np.zeros((1, 2)), circle(rng.uniform(1, 5, 8))])
    reference = circle(rng.uniform(0.7, 2 * np.pi - 0.7, 300))
    sigma = 0.05
    v = judge(
        exact_lid(learned, x, sigma, rng.normal(size=(10, 16, 2))),
        mle(data, x),
        reference_model=exact_lid(learned, reference, sigma, rng.normal(size=(300, 16, 2))),
        reference_data=mle(np.concatenate([data, reference]), reference),
    )
    assert v.kind.tolist() == ["overfitting", "data"] + 8 * ["none"]
    np.testing.assert_allclose(v.missing_dof[:2], 1, atol=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model", "data", "complexity"])
def test_one_bad_number_disturbs_no_other(name, bad):
    w = world(5, overfitting=30, n=1000, simplest=30)
    values = getattr(w, name).copy()
    values[7] = bad
    v = judge(**w.arguments(**{name: values if name == "complexity" else estimate(values)}))
    want = judge(**w.arguments())
    others = np.arange(100) != 7
    assert (v.kind == want.kind)[others].all()
    assert want.memorized[7]
    assert v.kind[7] == "undetermined"
    assert "finite" in v.reason[7]


def test_one_bad_reference_image_is_left_out():
    w = world(6, overfitting=30)
    broken = w.reference_model.copy()
    broken[3] = np.nan
    v = judge(**w.arguments(reference_model=estimate(broken)))
    want = judge(
        **w.arguments(
            data=None,
            reference_data=None,
            reference_model=estimate(np.delete(w.reference_model, 3)),
            reference_complexity=np.delete(w.reference_complexity, 3, 0),
        )
    )
    np.testing.assert_allclose(v.p_value, want.p_value)
    np.testing.assert_allclose(v.missing_dof, want.missing_dof)
