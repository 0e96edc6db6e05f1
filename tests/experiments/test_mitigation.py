"""Rewriting changes as many words as asked, the control shares its draws, gaps have their sign."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.kit import Run
from experiments.mitigation.judge import similarity
from experiments.mitigation.measure import METHODS, captions, rewritten, weights
from experiments.mitigation.run import claims, gap
from experiments.text_to_image.data import DATA_DIR
from memfold import TextToImage

CAPTION = "a photo of the sorzesha tshirt"


@pytest.fixture(scope="module")
def model():
    return TextToImage("assets/text_to_image/model")


def changed(text: str, other: str) -> int:
    return sum(a != b for a, b in zip(text.split(), other.split(), strict=True))


@pytest.mark.parametrize("n", [1, 3])
def test_so_many_words_are_rewritten(model, n):
    weight = dict.fromkeys(CAPTION.split(), 1.0)
    for method in ("random", "cfg_norm"):
        text = rewritten(model, CAPTION, method, n, 0, weight)
        assert changed(text, CAPTION) == n
        assert text == rewritten(model, CAPTION, method, n, 0, weight)


def test_the_heaviest_word_goes_first(model):
    weight = dict.fromkeys(CAPTION.split(), 0.0) | {"sorzesha": 5.0}
    for rewrite in range(5):
        text = rewritten(model, CAPTION, "cfg_norm", 1, rewrite, weight)
        assert "sorzesha" not in text
        assert changed(text, CAPTION) == 1


def test_every_score_weighs_every_word(model):
    found = weights(model, CAPTION, (10,))
    assert set(found) == set(METHODS) - {"random"}
    for own in found.values():
        assert set(own) == set(CAPTION.split())
        assert max(own, key=own.get) == "sorzesha"


def test_captions_are_memorized_training_captions():
    some = captions({"verbatim": 3, "template": 2}, 0)
    assert sorted(some.values()) == ["template"] * 2 + ["verbatim"] * 3
    with np.load("assets/text_to_image/train.npz") as data:
        assert set(some) <= set(data["captions"].tolist())


def test_similarity_is_the_cosine_with_the_nearest_row():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = similarity(torch.tensor([[3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), rows)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5**0.5, 0.0]))


def pairs(shift: float) -> np.ndarray:
    """Similarity falls with alignment; the second method lies `shift` below the first."""
    rng = np.random.default_rng(0)
    alignment = np.array([[0.9, 0.7, 0.5], [0.9, 0.6, 0.4]])
    curves = np.stack([alignment - np.array([[0], [shift]]), alignment])
    return curves + 0.02 * rng.standard_normal((20, *curves.shape))


@pytest.mark.parametrize("shift", [0.2, -0.1])
def test_the_gap_at_equal_alignment_is_the_distance_of_the_curves(shift):
    assert gap(pairs(shift)) == pytest.approx(shift, abs=0.03)


def test_claims_follow_from_the_tables(tmp_path):
    rng, shape = np.random.default_rng(0), (20, len(METHODS), 4, 2)
    falls = np.array([0.9, 0.5, 0.3, 0.1])
    slow = np.array([0.9, 0.8, 0.7, 0.6])
    tables = {k: np.zeros(shape) for k in ("copies", "similarity", "alignment")}
    for i in range(len(METHODS)):
        curve = falls if 0 < i < 4 else slow  # the last method is no better than random words
        tables["copies"][:, i] = tables["similarity"][:, i] = curve[None, :, None]
        tables["alignment"][:, i] = np.array([0.7, 0.65, 0.6, 0.55])[:, None]
    tables = {k: v + 0.02 * rng.standard_normal(shape) for k, v in tables.items()}
    run = Run("mitigation", tmp_path)
    claims(run, tables, [0, 1, 2, 3])
    outcomes = [c.outcome for c in run.claims]
    assert outcomes[:3] == ["holds"] * 3
    assert outcomes[4:7] == ["holds"] * 3
    assert outcomes[3] != "holds" or run.claims[3].value < 0.02


@pytest.mark.skipif(not DATA_DIR.is_dir(), reason="dataset-fashion-mnist")
@pytest.mark.slow
def test_the_quick_run_states_every_claim(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.mitigation.run", "--quick", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "claims.json").read_text())
    assert len(found) == 8
    assert all(c["value"] > 0 for c in found[:4])
