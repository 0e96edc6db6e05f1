"""Draw a prompt without repeating what the model knows by heart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.tensors import check_generator, prompt_generator
from memfold.types import InputError

from .away import away
from .base import Mitigation, Weights
from .embedding import embedding
from .lid_guidance import lid_guidance
from .noise import noise
from .padding import padding
from .random_tokens import random_words
from .reword import reword
from .rewrite import random_rewrite, rewrite
from .schedule import late_guidance

METHODS: dict[str, Callable[..., Mitigation]] = {
    "reword": reword,
    "embedding": embedding,
    "rewrite": rewrite,
    "random_rewrite": random_rewrite,
    "random_words": random_words,
    "late_guidance": late_guidance,
    "lid_guidance": lid_guidance,
    "padding": padding,
    "noise": noise,
    "away": away,
}

_GIVEN = {"model", "prompt", "seeds", "weights", "generator", "options"}  # by mitigate itself


def mitigate(
    pipe: Any,
    prompt: str,
    *,
    method: str = "reword",
    seeds: Sequence[int] = (0, 1, 2, 3),
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Mitigation:
    """Find out how to draw a prompt without its memorized image; nothing of the pipeline changes.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        prompt: the words.
        method: one of `METHODS`.
        seeds: seeds that are to be drawn; those by which a method finds out are others.
        weights: weight of each word, for "rewrite": what `memfold.attribute` returned, pairs (word,
            weight) in the order of the prompt, or a mapping, in which a repeated word has one
            weight; found by leaving each word out if None.
        generator: source of randomness; that of the prompt and seed 0 if None, so that a
            call can be repeated and prompts differ.
        options: the method's own options, and arguments of the pipeline.

    Returns:
        The mitigation; `.generate(seeds)` draws under it.

    Raises:
        InputError: the method or an option is unknown, or the pipeline lacks what it needs.
    """
    if method not in METHODS:
        raise InputError(f"method = {method!r} is unknown; choose from {', '.join(METHODS)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"the prompt {prompt!r} has no words; there is nothing to mitigate")
    check_generator(generator)
    model = pipe if isinstance(pipe, TextToImage) else TextToImage(pipe)
    function = METHODS[method]
    known = set(inspect.signature(function).parameters) - _GIVEN
    own = {k: v for k, v in options.items() if k in known}
    rest = {k: v for k, v in options.items() if k not in own}
    unknown = sorted(set(rest) - model.accepts)
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: no option of method {method!r} and no argument of {model.name}"
        )
    generator = prompt_generator(prompt) if generator is None else generator
    return function(
        model, prompt, seeds=seeds, weights=weights, generator=generator, options=rest, **own
    )


__all__ = ["METHODS", "Mitigation", "mitigate"]
