"""Other words in place of those that the score hangs on (Ross et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.tensors import base_seed
from memfold.types import InputError

from .base import Mitigation, Weighted, Weights
from .endpoint import ask
from .freedom import SIGMAS, Freedom, without_each
from .vocabulary import vocabulary

_NEIGHBOURS = 16


def rewrite(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 1,
    temperature: float = 0.1,
    url: str | None = None,
    llm: str | None = None,
    key_env: str = "OPENAI_API_KEY",
) -> Mitigation:
    """Replace the words that the score hangs on.

    Words are drawn without replacement with probability softmax(weight / (T max weight)). Offline,
    each gives way to that one of its 16 neighbours in the text encoder's embedding table with which
    the pooled embedding of the whole prompt stays closest. With `url`, a language model behind any
    OpenAI-compatible endpoint, as in the paper, rewrites the prompt without the drawn words.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: where there are no weights, images are drawn from seeds past the largest of these.
        weights: weight of each word, from `memfold.attribute`; if None, how much the denoising loss
            at what the prompt draws rises without the word.
        generator: source of the draws.
        options: arguments of the pipeline.
        n_words: how many words are replaced.
        temperature: T; small takes the heaviest words.
        url: base of the endpoint, such as "http://localhost:8000/v1"; None for offline.
        llm: name of the language model there.
        key_env: environment variable that holds the endpoint's key; may be unset.

    Returns:
        The mitigation.

    Raises:
        InputError: the weights are of other words, an option is out of range, or the endpoint
            fails.
    """
    if temperature <= 0:
        raise InputError(f"temperature = {temperature}; take a number above 0")
    words = prompt.split()
    if weights is None:
        values = _left_out(model, words, seeds, generator, options)
    else:
        values = torch.tensor(_aligned(weights, words), dtype=torch.float64)
    p = torch.softmax(values / (temperature * values.max().clamp_min(1e-12)), 0)
    return _rewritten(
        model, prompt, "rewrite", _draw(p, n_words, generator), options, (url, llm, key_env)
    )


def random_rewrite(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    n_words: int = 1,
    url: str | None = None,
    llm: str | None = None,
    key_env: str = "OPENAI_API_KEY",
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
        url: see `rewrite`.
        llm: see `rewrite`.
        key_env: see `rewrite`.

    Returns:
        The mitigation.

    Raises:
        InputError: the prompt has no words, or the endpoint fails.
    """
    p = torch.ones(len(prompt.split()), dtype=torch.float64)
    return _rewritten(
        model, prompt, "random_rewrite", _draw(p, n_words, generator), options, (url, llm, key_env)
    )


def _aligned(weights: Weights, words: list[str]) -> list[float]:
    """Give each word of a prompt its own weight."""
    if isinstance(weights, Mapping):
        return [float(weights.get(word, 0.0)) for word in words]
    if isinstance(weights, Weighted):
        pairs = list(zip(weights.words, weights.weights.tolist(), strict=True))
    else:
        pairs = list(weights)
    if [word for word, _ in pairs] != words:
        raise InputError(
            f"weights are of {' '.join(word for word, _ in pairs)[:60]!r}, and the prompt is "
            f"{' '.join(words)[:60]!r}; attribute this prompt"
        )
    return [float(weight) for _, weight in pairs]


def _left_out(
    model: TextToImage,
    words: list[str],
    seeds: Sequence[int],
    generator: torch.Generator | None,
    options: Mapping[str, Any],
) -> Tensor:
    """Weigh each word by the rise of the denoising loss at what is drawn when it is left out."""
    if len(words) < 2:
        return torch.ones(len(words), dtype=torch.float64)
    first = max(seeds, default=0) + 1
    freedom = Freedom(model, options, SIGMAS, base_seed(generator), first)
    drawn = freedom.drawn(" ".join(words))
    before = freedom.at(drawn)
    left = [freedom.at(drawn, text) - before for text in without_each(words)]
    return torch.tensor(left, dtype=torch.float64).clamp_min(0)


def _draw(p: Tensor, n: int, generator: torch.Generator | None) -> list[int]:
    if n < 1:
        raise InputError(f"n_words = {n}; take 1 or more")
    if not len(p):
        raise InputError("the prompt has no words to replace")
    possible = int((p > 0).sum())
    return torch.multinomial(p, min(n, possible), generator=generator).tolist()


def _rewritten(
    model: TextToImage,
    prompt: str,
    method: str,
    chosen: list[int],
    options: Mapping[str, Any],
    service: tuple[str | None, str | None, str],
) -> Mitigation:
    words = prompt.split()
    gone = [words[i] for i in chosen]
    url, llm, key_env = service
    ours = url is None
    text = _offline(model, words, chosen) if ours else ask(str(url), llm, key_env, prompt, gone)
    named = ", ".join(repr(w) for w in gone)
    return Mitigation(model, method, prompt, text, f"replaced {named}: {text!r}", options=options)


def _offline(model: TextToImage, words: list[str], chosen: list[int]) -> str:
    """Replace one word after the other by the neighbour that moves the whole text least."""
    known = vocabulary(model)
    now = list(words)
    target = known.pooled([" ".join(words)])[0]
    for i in chosen:
        near = known.near(words[i], _NEIGHBOURS)
        if not near:
            raise InputError(f"the text encoder knows no neighbour of {words[i]!r}")
        texts = [" ".join([*now[:i], other, *now[i + 1 :]]) for other in near]
        now[i] = near[int((known.pooled(texts) @ target).argmax())]
    return " ".join(now)
