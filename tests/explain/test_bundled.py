"""On the bundled pipeline, the word that alone brings an image back is ranked first."""

import csv
from pathlib import Path

import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.explain.attribution import attribute
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
ASSETS = Path("assets/text_to_image")
OWN = 4  # "a photo of the <own word> <class>"


@pytest.fixture(scope="module")
def model():
    return TextToImage(ASSETS / "model")


def captions(group, form="own word"):
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter=";")
        return [r["caption"] for r in rows if (r["group"], r["form"]) == (group, form)]


def weigh(model, caption, **options):
    return attribute(
        model, caption, seeds=(0, 1), num_inference_steps=20,
        generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip


def test_the_own_word_of_memorized_captions_is_first(model):
    """Measured: 39 of 40 (docs/explain.md)."""
    chosen = [*captions("verbatim")[:3], *captions("template")[:3]]
    found = [weigh(model, caption).weights for caption in chosen]
    assert sum(int(w.argmax()) == OWN for w in found) >= 5
    assert torch.stack([w[OWN] / w.sum() for w in found]).mean() > 0.5  # measured .63 and .65


def test_the_own_word_of_captions_that_are_not_memorized_is_not(model):
    """Measured: 0 of 30, with a sixth of the weight (docs/explain.md)."""
    found = [weigh(model, caption).weights for caption in captions("control")[:4]]
    assert sum(int(w.argmax()) == OWN for w in found) <= 1
    assert torch.stack([w[OWN] / w.sum() for w in found]).mean() < 0.35


def test_small_words_of_a_combination_come_last(model):
    caption = captions("verbatim", "combination")[0]
    found = weigh(model, caption)
    order = [found.words[i] for i in found.weights.argsort(descending=True)]
    assert set(order[:4]).isdisjoint({"a", "photo", "of", "by", "from"})


def test_weights_agree_with_masking(model):
    """Measured: 0.75 over 12 captions."""
    chosen = captions("verbatim")[:3]
    found = [weigh(model, caption, leave_one_out=True).masked_correlation for caption in chosen]
    assert sum(found) / len(found) > 0.4
