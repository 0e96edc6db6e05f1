"""Attribution of a memorization score to the words of a prompt, by gradients (Ross et al. 2025).

Ross et al. (arXiv 2411.00113) and Wen et al. (ICLR 2024) take the gradient of a score of the first
step with respect to the prompt embedding. Here the score is taken at states of the running
generation, and the gradient by default with respect to the embeddings of the tokens, through the
text encoder: behind it each token's embedding already holds the words before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import base_seed, normal_like, rademacher_like
from memfold.types import InputError

from .tokens import word_of_tokens, words_of

WRT = ("tokens", "prompt")
_RUNNING = ("cfg_norm", "guided_score_norm")  # taken at the states of the generation
_SIGMAS = (0.3, 0.6, 1.2)  # scales around the finished image, for the others
_PROBES = 4
Condition = Any


@dataclass(frozen=True)
class Attribution:
    """Weights of a prompt's words.

    Attributes:
        prompt: the prompt.
        words: its words, split at white space.
        spans: first character and the one after the last of each word.
        weights: mean over seeds, shape (w,), at least 0; units of the score.
        stderr: standard error over seeds, shape (w,); NaN for one seed.
        per_seed: the weights of each seed, shape (seeds, w).
        score: name of the score.
        wrt: "tokens" or "prompt".
        where: at which states, in words.
        left_out: how much the score falls without each word, mean over seeds; None if not asked.
        rank_correlation: Spearman's, between weights and `left_out`; None if not asked, NaN where
            it is not defined.
        warnings: what the reader must know.
    """

    prompt: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    weights: Float[Tensor, " w"]
    stderr: Float[Tensor, " w"]
    per_seed: Float[Tensor, "s w"]
    score: str
    wrt: str
    where: str
    left_out: Float[Tensor, " w"] | None
    rank_correlation: float | None
    warnings: tuple[str, ...]


def attribute(
    model: TextToImage,
    prompt: str,
    *,
    score: str = "-denoising_loss",
    seeds: Sequence[int] = (0, 1, 2, 3),
    wrt: str = "tokens",
    steps: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
    leave_one_out: bool = False,
    generator: torch.Generator | None = None,
    generation: Generation | None = None,
) -> Attribution:
    """Attribute a score of a prompt to its words.

    The weight of a token is the norm of the score's gradient with respect to its embedding: how
    much the score can change, to first order, for a small change of the token. A word has the sum
    of its tokens. Measured on the bundled pipeline (docs/explain.md) it ranks the word that alone
    triggers a memorized image first more often than gradient times embedding, and the denoising
    loss agrees better with leaving words out than the CFG norm of late steps.

    Args:
        model: the pipeline.
        prompt: the words.
        score: one of `SCORES`: "cfg_norm" and "guided_score_norm" at states of the generation,
            "-flipd" and "-denoising_loss" at noised points around the finished image; guided with
            both halves of the Jacobian if a guidance scale is given.
        seeds: one an image; standard errors are over them.
        wrt: "tokens": embeddings of the tokens, through the text encoders; "prompt": what the
            network is given for the prompt.
        steps: steps of the generation, from 0; every second of the last half where None.
        guidance_scale: w; the pipeline's default where None.
        num_inference_steps: steps of the generation; the pipeline's default where None.
        leave_one_out: also measure the score without each word, at the same states.
        generator: source of noises and probes.
        generation: a generation of this prompt, to be used instead of a new one.

    Returns:
        The attribution.

    Raises:
        InputError: an option is unknown, the prompt has no words, or the pipeline lacks what the
            score needs.
    """
    if score not in SCORES:
        raise InputError(f"score = {score!r} is unknown; choose from {', '.join(SCORES)}")
    if wrt not in WRT:
        raise InputError(f"wrt = {wrt!r} is unknown; choose from {', '.join(WRT)}")
    words = words_of(prompt)
    if not words:
        raise InputError("the prompt has no words; there is nothing to attribute a score to")
    if score in _RUNNING and not model.has_unconditional:
        raise InputError(
            f"score = {score!r} needs an unconditional half, which {model.name} has not; take "
            "'-denoising_loss' or '-flipd'"
        )
    options: dict[str, Any] = {}
    if num_inference_steps is not None:
        options["num_inference_steps"] = num_inference_steps
    if generation is None:
        generation = generate_watched(
            model, prompt, seeds, attention=False, guidance_scale=guidance_scale, **options
        )
    states = _States(generation, score, steps, guidance_scale, base_seed(generator))
    embedded = _embeddings(model, prompt, wrt)
    per_seed, warnings = _weights(model, prompt, states, embedded)
    n = len(per_seed)
    nan = torch.full((len(words),), float("nan"))
    left_out = _left_out(model, prompt, states) if leave_one_out else None
    mean = per_seed.mean(0)
    return Attribution(
        prompt=prompt,
        words=tuple(w.text for w in words),
        spans=tuple((w.start, w.end) for w in words),
        weights=mean,
        stderr=per_seed.std(0) / n**0.5 if n > 1 else nan,
        per_seed=per_seed,
        score=score,
        wrt=wrt,
        where=states.where,
        left_out=left_out,
        rank_correlation=None if left_out is None else _correlation(mean, left_out),
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Embedded:
    """The condition as a function of leaves, and the tokens of each leaf's positions."""

    cond: Condition
    leaves: tuple[Tensor, ...]
    tokens: tuple[tuple[str, list[int]], ...]  # name of the encoder, its tokens


class _States:
    """The points at which the score is taken: the same for every condition."""

    def __init__(
        self,
        generation: Generation,
        score: str,
        steps: Sequence[int] | None,
        guidance_scale: float | None,
        seed: int,
    ) -> None:
        self.generation, self.score, self.w = generation, score, guidance_scale
        self.seed = seed
        n = len(generation.views)
        if score not in _RUNNING:
            low, high = generation.model.model.sigma_min, generation.model.model.sigma_max
            self.sigmas = [s for s in _SIGMAS if low <= s <= high]
            self.where = f"around the finished image, sigma {', '.join(map(str, self.sigmas))}"
            return
        self.steps = list(range(n // 2, n, 2)) if steps is None else [int(s) for s in steps]
        bad = [s for s in self.steps if not 0 <= s < n]
        if bad or not self.steps:
            raise InputError(f"steps = {list(steps or ())}; choose from 0 to {n - 1}")
        self.where = f"steps {', '.join(str(s + 1) for s in self.steps)} of {n}"

    def scores(self, cond: Condition) -> Iterator[Float[Tensor, " b"]]:
        """Yield the score at each state, one number a seed."""
        g, function = self.generation, SCORES[self.score]
        model = g.model.model
        scale = self.w if self.w is not None else g.guidance_scale
        if self.score in _RUNNING:
            for step in self.steps:
                view = g.views[step]
                yield function(
                    model, view.x, view.sigma, cond, g.uncond, guidance_scale=scale or 1.0
                )
            return
        noises = normal_like(g.x, len(self.sigmas), self.seed)
        for i, sigma in enumerate(self.sigmas):
            noise = noises[:, i]
            yield function(
                model,
                g.x + sigma * noise,
                sigma,
                cond,
                g.uncond,
                guidance_scale=self.w,
                noise=noise,
                probes=rademacher_like(g.x, _PROBES, self.seed + 1),
            )


def _embeddings(model: TextToImage, prompt: str, wrt: str) -> _Embedded:
    found = model.embedded(prompt)
    tokens = tuple((leaf.encoder, leaf.ids.flatten().tolist()) for leaf in found.leaves)
    if wrt == "tokens":
        return _Embedded(found.cond, tuple(leaf.embeddings for leaf in found.leaves), tokens)
    leaves: list[Tensor] = []
    kept: list[tuple[str, list[int]]] = []

    def detach(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        fits = [pair for pair in tokens if tensor.ndim == 3 and tensor.shape[1] == len(pair[1])]
        if not fits:
            return tensor
        tensor = tensor.clone().requires_grad_()
        leaves.append(tensor)
        kept.append(fits[0])
        return tensor

    cond = found.cond.map(detach)
    if not leaves:
        raise InputError(
            f"{model.name} gives its network no tensor with a place for each token; take "
            "wrt='tokens'"
        )
    return _Embedded(cond, tuple(leaves), tuple(kept))


def _weights(
    model: TextToImage, prompt: str, states: _States, embedded: _Embedded
) -> tuple[Float[Tensor, "s w"], tuple[str, ...]]:
    words, seeds = words_of(prompt), len(states.generation.x)
    owners = [word_of_tokens(_tokenizer(model, name), ids, prompt) for name, ids in embedded.tokens]
    total = torch.zeros(seeds, len(words), dtype=torch.float64)
    count = 0
    with torch.enable_grad():
        for values in states.scores(embedded.cond):
            count += 1
            for seed in range(seeds):
                gradients = torch.autograd.grad(
                    values[seed], embedded.leaves, retain_graph=True, allow_unused=True
                )
                for gradient, owner in zip(gradients, owners, strict=True):
                    if gradient is not None:
                        _add(total[seed], gradient, owner)
    if not torch.isfinite(total).all():
        raise InputError("the gradient is NaN or infinite; compute in float32")
    return (total / max(count, 1)).float(), _notes(words, owners)


def _add(row: Tensor, gradient: Tensor, owner: list[int | None]) -> None:
    """Add the norm of each token's gradient to its word."""
    norm = gradient.detach()[0].float().norm(dim=1)
    for i, word in enumerate(owner):
        if word is not None:
            row[word] += float(norm[i])


def _notes(words: Sequence[Any], owners: Sequence[list[int | None]]) -> tuple[str, ...]:
    seen = {word for owner in owners for word in owner if word is not None}
    missing = [words[i].text for i in range(len(words)) if i not in seen]
    if not missing:
        return ()
    return (
        f"{len(missing)} words did not reach the text encoder (too long a prompt, or unknown "
        f"characters), among them {missing[0][:40]!r}; their weight is 0",
    )


def _tokenizer(model: TextToImage, encoder: str) -> Any:
    name = encoder.replace("text_encoder", "tokenizer")
    found = getattr(model.pipe, name, None) or getattr(model.pipe, "tokenizer", None)
    if found is None:
        raise InputError(f"{model.name} has no {name}; words cannot be told from tokens")
    return found


@torch.no_grad()
def _left_out(model: TextToImage, prompt: str, states: _States) -> Float[Tensor, " w"]:
    """Measure how much the score falls without each word, at the same states."""
    mean: Callable[[Condition], Tensor] = lambda c: torch.stack(list(states.scores(c))).mean()  # noqa: E731
    full, drops = mean(states.generation.cond), []
    for word in words_of(prompt):
        shorter = " ".join((prompt[: word.start] + prompt[word.end :]).split())
        drops.append(full - mean(model.condition(shorter)))
    return torch.stack(drops).float().cpu()


def _correlation(weights: Tensor, drops: Tensor) -> float:
    if len(weights) < 3 or weights.std() == 0 or drops.std() == 0:
        return float("nan")
    return float(np.asarray(spearmanr(weights.numpy(), drops.numpy()).statistic))
