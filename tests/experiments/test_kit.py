"""Claims follow from their intervals; steps are computed once; intervals cover the truth."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch

from experiments.kit import Run, claims_table, difference, interval, proportion
from experiments.publish import publish


@pytest.mark.parametrize(
    ("found", "limits", "outcome", "demand"),
    [
        ((1.0, 0.5, 1.5), {"above": 0.0}, "holds", "> 0"),
        ((1.0, -0.5, 1.5), {"above": 0.0}, "open", "> 0"),
        ((-1.0, -1.5, -0.5), {"above": 0.0}, "fails", "> 0"),
        ((0.2, 0.1, 0.3), {"below": 0.5}, "holds", "< 0.5"),
        ((0.7, 0.6, 0.8), {"below": 0.5}, "fails", "< 0.5"),
        ((1.0, 0.8, 1.2), {"above": 0.5, "below": 1.5}, "holds", "> 0.5 and < 1.5"),
        ((1.0, 0.4, 1.2), {"above": 0.5, "below": 1.5}, "open", "> 0.5 and < 1.5"),
        ((2.0, 1.5, 2.2), {"above": 0.5, "below": 1.5}, "fails", "> 0.5 and < 1.5"),
        ((0.0, 0.0, 0.0), {"above": 0.0}, "fails", "> 0"),
        ((float("nan"),) * 3, {"above": 0.0}, "open", "> 0"),
    ],
)
def test_a_claim_holds_only_if_its_whole_interval_does(tmp_path, found, limits, outcome, demand):
    claim = Run("x", tmp_path).claim("text", "statistic", found, **limits)
    assert (claim.outcome, claim.demand) == (outcome, demand)


def test_a_step_is_computed_once_and_again_when_its_settings_change(tmp_path):
    calls = []

    def compute(n, weights):
        calls.append(n)
        return {"x": torch.arange(n), "s": weights.sum()}

    def steps(weights, **options):
        return Run("x", tmp_path, **options).arrays("step", compute, n=3, weights=weights)

    first = steps(torch.ones(2))
    assert first["x"].tolist() == [0, 1, 2]
    assert first["s"] == 2
    assert steps(torch.ones(2))["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    steps(torch.tensor([1.0, 2.0]))  # the content of an array counts, not its name
    steps(torch.ones(2), seed=1)
    steps(torch.ones(2), quick=True)
    steps(torch.ones(2), overwrite=True)
    assert len(calls) == 5


def test_a_cached_step_keeps_the_seconds_that_it_took(tmp_path):
    def compute(k):
        time.sleep(0.05)
        return {"x": np.array([k])}

    first, again = Run("x", tmp_path), Run("x", tmp_path)
    for run in (first, again):
        assert [run.arrays("step", compute, k=k)["x"].tolist() for k in (1, 2)] == [[1], [2]]
    assert first.seconds["step"] >= 0.1  # both calls
    assert again.seconds == pytest.approx(first.seconds)


def test_a_step_that_is_cut_short_leaves_nothing_behind(tmp_path):
    run = Run("x", tmp_path)

    def broken():
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        run.arrays("step", broken)
    with pytest.raises(TypeError, match="no plain arrays"):
        run.arrays("odd", lambda: {"x": [object()]})
    with pytest.raises(TypeError, match="plain values"):
        run.arrays("odd", lambda x: {"x": 1}, x=object())
    assert not list((tmp_path / "steps").iterdir())


def test_a_module_comes_back_with_its_trained_weights(tmp_path):
    trained = []

    def build():
        return torch.nn.Linear(2, 1)

    def train(module, value):
        trained.append(value)
        with torch.no_grad():
            module.weight.fill_(value)

    for _ in range(2):
        module = Run("x", tmp_path).module("net", build, train, value=0.5)
        assert module.weight.tolist() == [[0.5, 0.5]]
        assert not module.training
        assert not module.weight.requires_grad
    assert trained == [0.5]


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 samples of 60: coverage within three binomial standard errors of 95 %, less a little."""
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        value, low, high = interval(rng.standard_normal(60) + 3, seed=k, resamples=400)
        assert low < value < high
        hits += low < 3 < high
    assert hits / 200 > 0.94 - 3 * np.sqrt(0.05 * 0.95 / 200)


def test_clusters_are_resampled_whole():
    """Ten copies of each of eight values say no more than the eight: the interval is as wide."""
    values = np.random.default_rng(1).standard_normal(8)
    alone = interval(values)
    copied = interval(np.repeat(values, 10), clusters=np.repeat(np.arange(8), 10))
    naive = interval(np.repeat(values, 10))
    assert copied == pytest.approx(alone, rel=1e-6)
    assert naive[2] - naive[1] < 0.5 * (alone[2] - alone[1])


def test_a_difference_and_a_share_have_the_right_sign_and_ends():
    value, low, high = difference(np.array([3.0, 4, 5, 4]), np.array([1.0, 2, 1, 2]))
    assert value == 2.5
    assert 0 < low < high
    assert proportion(0, 20) == pytest.approx((0, 0, 0.1684), abs=1e-4)  # Clopper-Pearson, exact


def test_only_full_runs_are_published(tmp_path):
    out = tmp_path / "out"
    run = Run("shown", out, quick=True)
    run.claim("text", "statistic", (1.0, 0.5, 2.0), above=0.0)
    run.table("t", ["a"], [[1.23456]])
    run.finish(1.0)
    with pytest.raises(ValueError, match="quick run"):
        publish(out, tmp_path)
    Run("shown", out).finish(1.0)
    (out / "f.svg").write_text("<svg>" + " " * 100 + "</svg>")
    (out / "f.png").write_bytes(b"png")
    target = publish(out, tmp_path / "gallery")
    names = {p.name for p in target.iterdir()}
    assert names == {"claims.json", "claims.md", "run.json", "t.md", "f.png"}
    assert json.loads((target / "run.json").read_text())["seed"] == 0
    assert "1.23" in (target / "t.md").read_text()


def test_a_bar_in_a_cell_is_no_border_and_a_reason_is_for_what_does_not_hold(tmp_path):
    run = Run("x", tmp_path)
    run.claim("LID(x | c) \\| |e|", "s", (1.0, 0.5, 2.0), above=0.0, reason="never shown")
    run.claim("a", "s", (1.0, 0.5, 2.0), below=0.0, reason="shown")
    text = claims_table([asdict(c) for c in run.claims])
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines()]
    assert {len(row) for row in rows} == {5 + 2}
    assert "never shown" not in text
    assert "**fails**: shown" in text
