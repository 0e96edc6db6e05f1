"""On the bundled pipeline, which really knows images by heart: copies before, none after."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.mitigation import mitigate
from memfold.mitigation.evaluate import copies, recheck
from memfold.mitigation.guard import Guard, Refused
from memfold.sampling.trajectory import generate_watched
from tests.text_to_image import tiny

ASSETS = Path(__file__).parents[2] / "assets" / "text_to_image"
RUN = {"num_inference_steps": 20, "guidance_scale": 3.0}
SEEDS = (0, 1, 2, 3)
pytestmark = [
    *tiny.QUIET,
    pytest.mark.skipif(not (ASSETS / "model").is_dir(), reason="the bundled pipeline is missing"),
]


@functools.cache
def bundled():
    return TextToImage(ASSETS / "model")


@functools.cache
def verbatim():
    """A caption known by heart, and the latent of its image."""
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    caption = next(
        r["caption"] for r in rows if r["type"] == "verbatim" and r["group"] == "verbatim"
    )
    data = np.load(ASSETS / "train.npz")
    picture = data["images"][np.flatnonzero(data["captions"] == caption)[0]]
    pixels = torch.from_numpy(picture).float()[None, None].expand(-1, 3, -1, -1) / 255
    return caption, bundled().encode(pixels)


def share(x):
    return float(copies(x, verbatim()[1], 0.15).float().mean())


@functools.cache
def embedded():
    return mitigate(bundled(), verbatim()[0], method="embedding", seeds=SEEDS, **RUN)


def test_rewording_drops_the_trigger_and_leaves_an_ordinary_prompt_alone():
    """Nothing is copied, the class still stands there, and the seeds differ again."""
    model, (caption, _) = bundled(), verbatim()
    found = mitigate(model, caption, method="reword", seeds=SEEDS, **RUN)
    assert found.prompt != caption
    assert caption.split()[-1] in found.prompt.split()
    x, known = found.generate(SEEDS).x, model.generate(caption, SEEDS, **RUN)
    assert share(x) == 0
    assert (x - x.mean(0)).square().mean() > 16 * (known - known.mean(0)).square().mean()
    ordinary = "a photo of a plain coat by elsa from kyoto"
    assert mitigate(model, ordinary, method="reword", seeds=SEEDS, **RUN).prompt == ordinary


def test_the_embedding_leaves_no_copy_and_an_attack_on_it_brings_it_back():
    """The memory is suppressed, not removed: the weights still hold the image."""
    model, (caption, x) = bundled(), verbatim()
    assert share(model.generate(caption, SEEDS, **RUN)) >= 0.75
    found = embedded()
    assert share(found.generate(SEEDS).x) == 0
    back = recheck(model, found.cond, x, generator=torch.Generator().manual_seed(0))
    drawn = generate_watched(model, caption, SEEDS, cond=back, attention=False, **RUN).x
    assert share(drawn) > 0


def test_the_guard_passes_what_is_within_and_redraws_what_is_not():
    model, (caption, _) = bundled(), verbatim()
    with torch.no_grad():
        scores = generate_watched(model, caption, SEEDS, attention=False, **RUN)
        free = embedded().generate(SEEDS)
    name, sigmas = "cfg_norm", [v.sigma for v in free.views]
    high, low = (g.scores[name].max(0).values.numpy() for g in (scores, free))
    order = np.argsort(sigmas)
    middle = np.where(high > 2 * low, (high + low) / 2, 2 * np.maximum(high, low))[order]
    band = Band(
        (name,), tuple(np.array(sigmas)[order].tolist()), {name: tuple(middle.tolist())},
        {name: (1.0,) * len(sigmas)}, 0.0, 0.01, 99, 4, {},
    )  # fmt: skip

    def drawn(pipe):
        generators = [torch.Generator().manual_seed(s) for s in SEEDS]
        return pipe(
            caption, num_images_per_prompt=4, generator=generators, output_type="latent", **RUN
        ).images

    guarded = Guard(model, band)
    with model.quiet():
        x = drawn(guarded)
        assert guarded.last == "mitigated"
        with pytest.raises(Refused):
            drawn(Guard(model, band, on_memorized="refuse"))
        vast = Guard(model, Band(**vars(band) | {"threshold": 1e9}))
        assert torch.equal(drawn(vast), drawn(model.pipe))
    assert share(model.to_ve(x, torch.tensor([min(sigmas)]))) == 0
