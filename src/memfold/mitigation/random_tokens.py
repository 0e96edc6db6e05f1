"""Random additions to a prompt (Somepalli et al. 2023): a control for methods that choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

from .base import Mitigation, Weights
from .vocabulary import vocabulary

KINDS = ("words", "numbers", "repeats")
_NUMBERS = 10**6


def random_words(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 4,
    kind: str = "words",
) -> Mitigation:
    """Insert random words at random places.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: source of the draws.
        options: arguments of the pipeline.
        n_words: how many are inserted.
        kind: "words" of the tokenizer, "numbers" below a million, or "repeats" of the prompt's own
            words.

    Returns:
        The mitigation.

    Raises:
        InputError: the kind is unknown, or the pipeline has no words to draw from.
    """
    if kind not in KINDS:
        raise InputError(f"kind = {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if n_words < 1:
        raise InputError(f"n_words = {n_words}; take 1 or more")
    own = prompt.split()
    pool = {"words": lambda: vocabulary(model).words, "repeats": lambda: own}
    known = pool[kind]() if kind in pool else None
    size = _NUMBERS if known is None else len(known)
    words = list(own)
    for i in torch.randint(size, (n_words,), generator=generator).tolist():
        place = int(torch.randint(len(words) + 1, (1,), generator=generator))
        words.insert(place, str(i) if known is None else known[i])
    new = " ".join(words)
    return Mitigation(
        model, "random_words", prompt, new, f"random {kind} were added: {new!r}", options=options
    )
