"""Scores are read prompt by prompt, samples keep their answers, claims follow from known scores."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.detection.data import Scores, read_scores, sample
from experiments.detection.figure import histograms
from experiments.detection.run import claims, separation
from experiments.kit import Run
from memfold.audit.labelled import Labelled

CORE = (
    "LID_θ(x | c) is lower at memorized prompts",
    "The CFG norm is higher at memorized prompts",
)


def test_a_sample_keeps_the_answer_of_each_prompt():
    kinds = ("verbatim", "none", "near", "template") * 10
    names = tuple(f"{kind} {i}" for i, kind in enumerate(kinds))
    some = sample(Labelled(names, kinds, names), {"verbatim": 3, "none": 50, "near": 2}, seed=1)
    assert all(p.split()[0] == k for p, k in zip(some.prompts, some.kinds, strict=True))
    assert some.prompts == some.families
    assert {k: some.kinds.count(k) for k in kinds} == {
        "verbatim": 3, "none": 10, "near": 2, "template": 0,
    }  # fmt: skip


def test_scores_are_means_over_the_images_of_a_prompt(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(
        "prompt,type,family,seed,cfg_norm,verdict\n"
        '"a, b",verbatim,f,0,1,4\n"a, b",verbatim,f,1,3,6\nc,none,c,0,5,0\nc,none,c,1,5,2\n'
    )
    found = read_scores(path)
    assert found.prompts.tolist() == ["a, b", "c"]
    assert found.families.tolist() == ["f", "c"]
    assert found.by_detector["cfg_norm"].tolist() == [2, 5]
    assert found.by_detector["verdict"].tolist() == [5, 1]
    assert found.positive.tolist() == [True, False]


def synthetic(conditional: float, without: float, verdict: float) -> Scores:
    """100 prompts of each answer; scores of memorized ones are shifted by so many deviations."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(["verbatim", "template", "none", "near"], [50, 50, 100, 10])
    moved = np.isin(kinds, ("verbatim", "template"))

    def column(shift: float) -> np.ndarray:
        return rng.standard_normal(len(kinds)) + shift * moved

    names = np.array([str(i) for i in range(len(kinds))])
    return Scores(names, kinds, names, {
        "flipd_conditional": column(conditional), "flipd_unconditional": column(without),
        "cfg_norm": column(conditional), "verdict": column(verdict),
    })  # fmt: skip


def outcomes(tmp_path, scores):
    run = Run("detection", tmp_path)
    claims(run, scores, 0.6)
    return [claim.outcome for claim in run.claims]


def test_claims_hold_and_fail_with_the_truth(tmp_path):
    assert outcomes(tmp_path, synthetic(3, 1, 6)) == ["holds"] * 6
    backwards = outcomes(tmp_path, synthetic(-3, -1, -6))
    assert backwards == ["fails"] * 6


def test_near_misses_count_neither_way(tmp_path):
    scores = synthetic(3, 1, 6)
    one, two = scores.split("cfg_norm")
    assert (len(one), len(two)) == (100, 100)
    truth = separation(one, two)
    scores.by_detector["cfg_norm"][scores.kinds == "near"] = 1e6
    assert separation(*scores.split("cfg_norm")) == truth


def test_the_histograms_show_every_kind():
    fig = histograms(synthetic(3, 1, 6))
    texts = {t.get_text() for t in fig.axes[0].get_legend().get_texts()}
    assert texts == {"not memorized", "template", "verbatim"}


@pytest.mark.slow
def test_the_quick_run_states_every_claim(tmp_path):
    command = [sys.executable, "-m", "experiments.detection.run", "--quick", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = {c["text"]: c["outcome"] for c in json.loads((tmp_path / "claims.json").read_text())}
    assert len(found) >= 5
    assert [found[text] for text in CORE] == ["holds"] * 2


@pytest.mark.slow
def test_two_lists_of_prompts_go_the_same_way(tmp_path):
    """The command for Stable Diffusion, on the bundled pipeline and short lists."""
    import csv

    with open("assets/text_to_image/prompts.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    for name, kind in (("memorized", "verbatim"), ("other", "none")):
        some = [r["caption"] for r in rows if (r["type"], r["use"]) == (kind, "test")][:8]
        lines = ["Caption;type"] + [f"{c};VM" if kind == "verbatim" else f"{c};" for c in some]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "experiments.detection.stable_diffusion", "--model",
        "assets/text_to_image/model", "--memorized", tmp_path / "memorized.csv", "--other",
        tmp_path / "other.csv", "--steps", "8", "--guidance-scale", "3", "--images", "2",
        "--out", out,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    found = {c["text"]: c["outcome"] for c in json.loads((out / "claims.json").read_text())}
    assert found[CORE[0]] == "holds"
