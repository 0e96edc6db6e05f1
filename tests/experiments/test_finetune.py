"""The comparison of a fine-tune with its base: differences, control, copies, claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.finetune.audit import RUN, compare, copied, draw, lids
from experiments.finetune.data import as_images, candidates, known_captions
from experiments.finetune.lora import add_lora, base_pipeline, weights_at
from experiments.finetune.run import ahead, ceiling, scores, separation
from experiments.text_to_image.data import DATA_DIR
from memfold import TextToImage

needs_data = pytest.mark.skipif(not DATA_DIR.is_dir(), reason="dataset-fashion-mnist")


@pytest.fixture(scope="module")
def model():
    """The bundled pipeline with an untrained LoRA, which changes nothing."""
    return TextToImage(add_lora(base_pipeline()), base="adapter off")


@needs_data
def test_candidates_are_new_and_all_different():
    some = candidates(40, 0)
    assert len(set(some.captions)) == 40
    assert not set(some.captions) & known_captions()
    assert torch.equal(some.images, candidates(40, 0).images)
    assert not torch.equal(some.images, candidates(40, 1).images)
    assert some.images.flatten(1).unique(dim=0).shape[0] == 40


def test_a_lora_that_did_not_learn_takes_no_freedom(model):
    x = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    found = compare(model, x, ["a photo of a dark bag", None, "a photo of a boot"])
    assert torch.equal(found.difference, torch.zeros(3))
    assert (found.tuned > 1).all()


def test_a_lora_that_did_learn_changes_the_tuned_side_alone(model):
    from peft import get_peft_model_state_dict

    state = {k: torch.full_like(v, 0.02) for k, v in
             get_peft_model_state_dict(model.pipe.unet).items()}  # fmt: skip
    other = TextToImage(add_lora(base_pipeline(), state), base="adapter off")
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    words = ["a photo of a dark bag", "a photo of a boot"]
    before, after = compare(model, x, words), compare(other, x, words)
    torch.testing.assert_close(after.base, before.base)
    assert (after.tuned - before.tuned).abs().min() > 0.1


def test_several_images_of_a_caption_are_averaged(model):
    x = torch.randn(2, 2, *model.shape, generator=torch.Generator().manual_seed(0))
    words = ["a photo of a dark bag", "a photo of a boot"]
    both = lids(model, x, words)
    one = [lids(model, x[:, i], words) for i in range(2)]
    torch.testing.assert_close(both, (one[0] + one[1]) / 2, rtol=1e-3, atol=1e-3)


def test_drawing_together_is_drawing_alone(model):
    words = ["a photo of a dark bag", "a photo of a boot", "a photo of a bright coat"]
    together = draw(model, words, (3, 4))
    alone = torch.stack([model.generate(w, [3, 4], **RUN) for w in words])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_a_comparison_without_a_base_is_refused(model):
    with pytest.raises(ValueError, match="no base"):
        compare(model.base, torch.zeros(1, *model.shape), ["a photo"])


def test_copies_are_told_by_their_own_caption():
    x = torch.zeros(2, 4, 8, 8)
    x[1] += 1
    drawn = torch.stack([x[0] + 0.1, x[0] + 0.2])[None].repeat(2, 1, 1, 1, 1)
    assert copied(drawn, x).tolist() == [[True, False], [False, False]]


def test_the_gain_of_the_difference_has_the_right_sign():
    rng = np.random.default_rng(0)
    private = np.arange(200) < 20
    complexity = 20 * rng.standard_normal(200)
    base = 60 + complexity
    both = scores(base, base - 10 * private + rng.standard_normal(200))
    assert separation(both["difference"][private], both["difference"][~private]) > 0.99
    value, low, high = ahead([both, both], private, 0)
    assert 0 < low < value < high
    turned = {"difference": both["alone"], "alone": both["difference"]}
    assert ahead([turned], private, 0)[2] < 0
    assert ceiling(turned, private)
    assert not ceiling(both, private)


def test_weights_of_a_step_are_told_apart():
    kept = {"25/a.b": 1, "250/a.b": 2}
    assert weights_at(kept, 25) == {"a.b": 1}


def test_images_are_grey_in_three_channels():
    grey = np.arange(32 * 32, dtype=np.uint8).reshape(1, 32, 32)
    made = as_images(grey)
    assert made.shape == (1, 3, 32, 32)
    assert float(made.max()) == 1.0
    assert torch.equal(made[:, 0], made[:, 2])


@needs_data
@pytest.mark.slow
def test_the_quick_run_states_every_claim(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.finetune.run", "--quick", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    found = {c["text"]: c["outcome"] for c in json.loads((tmp_path / "claims.json").read_text())}
    assert len(found) == 8
    assert found["Knowing image and caption, the difference finds the private images"] == "holds"
