"""Other words: at random, or in place of those that the score hangs on (Ross et al. 2025, E4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

from .base import Mitigation

TEMPERATURE = 0.1
_NEIGHBOURS = 8


def rewrite(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 1,
) -> Mitigation:
    """Replace the words that the score hangs on by neighbours in the embedding table.

    Words are drawn without replacement with probability softmax(weight / (0.1 max weight)), as in
    Ross et al. with T = 0.1; each gives way to one of the 8 nearest whole words of the first text
    encoder's own table, by cosine. Offline: a stand-in for the language model of the paper.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: weight of each word, from `memfold.attribute`.
        generator: source of the draws.
        options: arguments of the pipeline.
        n_words: how many words are replaced.

    Returns:
        The mitigation.

    Raises:
        InputError: there are no weights.
    """
    if not weights:
        raise InputError(
            "method = 'rewrite' needs weights of the words; pass weights= from memfold.attribute"
        )
    words = prompt.split()
    values = torch.tensor([float(weights.get(w, 0.0)) for w in words], dtype=torch.float64)
    p = torch.softmax(values / (TEMPERATURE * values.max().clamp_min(1e-12)), 0)
    chosen = _draw(p, n_words, generator)
    return _replaced(model, prompt, words, chosen, "rewrite", generator, options)


def random_rewrite(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 1,
) -> Mitigation:
    """Replace words drawn evenly, in the same way: the control of `rewrite`.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: source of the draws.
        options: arguments of the pipeline.
        n_words: how many words are replaced.

    Returns:
        The mitigation.

    Raises:
        InputError: the prompt has no words.
    """
    words = prompt.split()
    p = torch.full((len(words),), 1.0 / max(len(words), 1), dtype=torch.float64)
    chosen = _draw(p, n_words, generator)
    return _replaced(model, prompt, words, chosen, "random_rewrite", generator, options)


def random_words(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 4,
) -> Mitigation:
    """Add random words of the tokenizer to the prompt (Somepalli et al. 2023).

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: source of the draws.
        options: arguments of the pipeline.
        n_words: how many are added.

    Returns:
        The mitigation.
    """
    names, _ = _table(model)
    added = [names[i] for i in torch.randint(len(names), (n_words,), generator=generator).tolist()]
    words = prompt.split()
    for word in added:
        place = int(torch.randint(len(words) + 1, (1,), generator=generator))
        words.insert(place, word)
    new = " ".join(words)
    return Mitigation(model, "random_words", prompt, new, f"random words were added: {new!r}",
                      options=options)  # fmt: skip


def _draw(p: Tensor, n: int, generator: torch.Generator | None) -> list[int]:
    if not len(p):
        raise InputError("the prompt has no words to replace")
    possible = int((p > 0).sum())
    return torch.multinomial(p, min(n, possible), generator=generator).tolist()


def _replaced(
    model: TextToImage,
    prompt: str,
    words: list[str],
    chosen: list[int],
    method: str,
    generator: torch.Generator | None,
    options: Mapping[str, Any],
) -> Mitigation:
    names, table = _table(model)
    place = {name: i for i, name in enumerate(names)}
    new, told = list(words), []
    for i in chosen:
        own = place.get(words[i].lower())
        if own is None:
            near = torch.randperm(len(names), generator=generator)[:_NEIGHBOURS]
        else:
            cosine = table @ table[own]
            cosine[own] = -2.0
            near = cosine.topk(min(_NEIGHBOURS, len(names) - 1)).indices
        pick = int(near[int(torch.randint(len(near), (1,), generator=generator))])
        new[i] = names[pick]
        told.append(f"{words[i]!r} by {names[pick]!r}")
    text = " ".join(new)
    return Mitigation(
        model, method, prompt, text, f"replaced {', '.join(told)}: {text!r}", options=options
    )


def _table(model: TextToImage) -> tuple[list[str], Tensor]:
    """Return the whole words of the first tokenizer, and their embeddings, normed."""
    tokenizer = getattr(model.pipe, "tokenizer", None)
    encoder = getattr(model.pipe, "text_encoder", None)
    if tokenizer is None or encoder is None or not hasattr(encoder, "get_input_embeddings"):
        raise InputError(f"{model.name} has no tokenizer and text encoder; words cannot be chosen")
    table = encoder.get_input_embeddings().weight.detach().float().cpu()
    found = {}
    for token, index in tokenizer.get_vocab().items():
        word = token.removesuffix("</w>").lstrip("▁Ġ")
        whole = token.endswith("</w>") or token[:1] in "▁Ġ"
        if whole and len(word) > 2 and word.isalpha() and index < len(table):
            found[word] = index
    if not found:  # a vocabulary of plain words
        found = {t: i for t, i in tokenizer.get_vocab().items() if t.isalpha() and i < len(table)}
    names = sorted(found)
    rows = table[[found[n] for n in names]]
    return names, torch.nn.functional.normalize(rows, dim=1)
