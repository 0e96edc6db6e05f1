"""Rewrite captions and measure what is copied still, and what the pictures show."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from experiments.finetune.audit import RUN, draw
from experiments.mitigation.judge import ASSETS, Judge
from memfold import TextToImage, attribute, mitigate
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import text_seed

METHODS = {
    "random": "random words",
    "cfg_norm": "CFG norm",
    "guided_score_norm": "guided score norm",
    "-flipd": "FLIPD",
    "-denoising_loss": "denoising loss",
}
ATTRIBUTION_SEEDS = (10, 11)  # not those that are drawn
TEMPERATURE = 0.1


def captions(counts: dict[str, int], seed: int) -> dict[str, str]:
    """Draw memorized training captions of each kind; caption -> kind."""
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    rng, found = np.random.default_rng(seed), {}
    for kind, n in counts.items():
        some = [r["caption"] for r in rows if r["type"] == kind == r["group"]]
        found |= {str(c): kind for c in rng.permutation(some)[:n]}
    return found


def weights(model: TextToImage, caption: str, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Weights of a caption's words by each score; one generation serves all."""
    drawn = generate_watched(model, caption, seeds, attention=False, **RUN)
    found = {}
    for score in METHODS:
        if score != "random":
            generator = torch.Generator().manual_seed(text_seed(caption))
            made = attribute(model, caption, score=score, generation=drawn, generator=generator)
            found[score] = dict(zip(made.words, made.weights.tolist(), strict=True))
    return found


def rewritten(
    model: TextToImage, caption: str, method: str, n_words: int, rewrite: int,
    weight: dict[str, float] | None,
) -> str:  # fmt: skip
    """Rewrite n words of a caption; the draws of all methods start from the same randomness."""
    generator = torch.Generator().manual_seed(text_seed(caption, 1000 * rewrite + n_words))
    own = {} if method == "random" else {"weights": weight, "temperature": TEMPERATURE}
    name = "random_rewrite" if method == "random" else "rewrite"
    return mitigate(model, caption, method=name, n_words=n_words, generator=generator, **own).prompt


@cache
def shared() -> Judge:
    """Load the pipeline and its judge once."""
    return Judge(TextToImage(ASSETS / "model"))


def measured(caption: str, words: list[int], rewrites: int, seeds: list[int]) -> dict[str, Any]:
    """Rewrite a caption by every method; tables (methods, words, rewrites).

    Returns:
        similarity, copies, alignment, each with n = 0 first in the axis of words; `texts`; `pictures`
        of the first rewrite and seed, uint8; `original`, a training picture of the caption.
    """
    judge = shared()
    model = judge.model
    shape = (len(METHODS), 1 + len(words), rewrites)
    tables = {k: np.zeros(shape) for k in ("similarity", "copies", "alignment")}
    texts = np.empty(shape, dtype="U200")
    pictures = np.zeros((*shape[:2], 32, 32), np.uint8)
    weight = weights(model, caption, ATTRIBUTION_SEEDS)
    for index in np.ndindex(shape):
        method, n = list(METHODS)[index[0]], [0, *words][index[1]]
        own = weight.get(method)
        texts[index] = rewritten(model, caption, method, n, index[2], own) if n else caption
    different = sorted(set(texts.flatten().tolist()))
    drawn = dict(zip(different, draw(model, different, seeds), strict=True))
    judged = {text: judge(x, caption) for text, x in drawn.items()}
    for index in np.ndindex(shape):
        for key, value in judged[texts[index]].items():
            tables[key][index] = value
        if index[2] == 0:
            image = model.decode(drawn[texts[index]][:1]).mean(1)[0].clamp(0, 1) * 255
            pictures[index[:2]] = image.byte().numpy()
    return {**tables, "texts": texts, "pictures": pictures, "original": original(caption)}


def original(caption: str) -> np.ndarray:
    """The first training picture of a caption."""
    with np.load(ASSETS / "train.npz") as data:
        return data["images"][np.flatnonzero(data["captions"] == caption)[0]]
