"""The smallest change of words under which the model is as free as without a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.sampling.trajectory import Generation
from memfold.tensors import base_seed
from memfold.types import InputError

from .base import Mitigation, Weights
from .freedom import SIGMAS, Freedom, without_each
from .vocabulary import Vocabulary, vocabulary

_DRAWS = 6  # candidates that are drawn in one round


def reword(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    target: float = 0.75,
    sigmas: Sequence[float] = SIGMAS,
    n_words: int = 4,
    neighbours: int = 4,
    rounds: int = 3,
    band: Band | None = None,
) -> Mitigation:
    """Drop or replace the word that the memory hangs on, and make sure that the model is free.

    The measure is r = E |D_c(x + sigma n) - x|^2 / E |D_0(x + sigma n) - x|^2: near 1 the words
    leave the model as free at x as no words do. A prompt that is free (r at least the target, at
    what it draws) is left as it is. Else each word is dropped, and those whose loss raises r at the
    known pictures most also give way to their neighbours in the text encoder's embedding table. Of
    the new texts that no longer know these pictures, those that still describe them best come first
    (the smallest r: the loss is a bound on the likelihood of the picture under the text, Li et al.
    2023, as in diffusion classifiers); the first that is free at what it draws itself is taken. If
    none is, the best is changed again.

    Args:
        model: the pipeline; it needs an unconditional half.
        prompt: the words.
        seeds: images are drawn from seeds of their own, past the largest of these.
        weights: not used; the words are weighed by leaving each out.
        generator: source of the noises, which are the same for all texts.
        options: arguments of the pipeline.
        target: least r of each image, mean over sigmas.
        sigmas: noise standard deviations in latent units.
        n_words: words for which neighbours are tried.
        neighbours: tried for each.
        rounds: words that are changed at most.
        band: of ordinary prompts; what is drawn must then stay in it too.

    Returns:
        The mitigation.

    Raises:
        InputError: the pipeline has no unconditional half, or an option is out of range.
    """
    if not 0 < target < 1 or n_words < 1 or neighbours < 0 or rounds < 1:
        raise InputError(
            f"target = {target}, n_words = {n_words}, neighbours = {neighbours}, rounds = {rounds};"
            " take 0 < target < 1, and 1 or more of each (neighbours: 0 or more)"
        )
    if not model.has_unconditional:
        model.unconditional()
    first = max(seeds, default=0) + 1
    judge = Freedom(model, options, sigmas, base_seed(generator), first, band)
    own = judge.drawn(prompt)
    done, freedom = judge.free(own, target)
    best, base = (freedom, prompt), prompt.split()
    known = _vocabulary(model) if neighbours and not done else None
    for _ in range(0 if done else rounds):
        ranked = _ranked(judge, own, base, known, n_words, neighbours)
        for _, text in [pair for pair in ranked if pair[0] >= target][:_DRAWS]:
            done, freedom = judge.free(judge.drawn(text), target)
            best = (freedom, text) if done else max(best, (freedom, text))
            if done:
                break
        if done or not ranked:
            break
        base = max(ranked)[1].split()
    return Mitigation(
        model, "reword", prompt, best[1], _said(prompt, best[1], best[0], done), options=options
    )


def _ranked(
    judge: Freedom,
    own: Generation,
    words: list[str],
    known: Vocabulary | None,
    n_words: int,
    neighbours: int,
) -> list[tuple[float, str]]:
    """Rate the texts with one word less or another one by r at the known pictures, ascending."""
    if len(words) < 2:
        return []
    rated = [(judge.at(own, text), text) for text in without_each(words)]
    if known is not None:
        heavy = sorted(range(len(words)), key=lambda i: -rated[i][0])[:n_words]
        for text in _replaced(words, heavy, known, neighbours):
            rated.append((judge.at(own, text), text))
    return sorted(set(rated))


def _replaced(
    words: list[str], places: Sequence[int], known: Vocabulary, neighbours: int
) -> Iterator[str]:
    for i in places:
        for other in known.near(words[i], neighbours):
            yield " ".join([*words[:i], other, *words[i + 1 :]])


def _vocabulary(model: TextToImage) -> Vocabulary | None:
    try:
        return vocabulary(model)
    except InputError:
        return None  # without words to choose from, words can still be dropped


def _said(prompt: str, text: str, freedom: float, done: bool) -> str:
    share = f"the model's denoising loss is {freedom:.0%} of that without a prompt"
    share += " at the least free image drawn"
    if text == prompt:
        return f"nothing was changed: {share}" + (
            "" if done else "; NO text was found that is free"
        )
    text = f"the words were changed to {text!r}: {share}"
    return text + ("" if done else ", and the wanted freedom was NOT reached")
