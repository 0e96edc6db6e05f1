"""Attribution of a memorization score to the words of a prompt, by gradients (Ross et al. 2025).

Ross et al. (arXiv 2411.00113) and Wen et al. (ICLR 2024) take the gradient of a score of the first
step with respect to the prompt embedding. Here the score is taken around the finished image or at
states of the running generation, and the gradient by default with respect to the embeddings of the
tokens, through the text encoder: behind it each embedding already holds the words before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.prompt_scores import score_name
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import base_seed, check_generator, prompt_generator
from memfold.types import InputError

from .gradients import Embedding, Owner, embeddings, gradient_of
from .left_out import fall, masks, without
from .states import RUNNING, States
from .tokens import Word, words_of

WRT = ("tokens", "prompt")


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
        rank_correlation: Spearman's, between weights and `left_out`, over the words that reached an
            encoder; None if not asked, NaN where it is not defined.
        warnings: what the reader must know.
        masked: how much the score falls with the mean of the embedding table in each word's place,
            which keeps the places of the others; None if not asked.
        masked_correlation: Spearman's, between weights and `masked`.
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
    masked: Float[Tensor, " w"] | None = None
    masked_correlation: float | None = None


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
    of its tokens. Measured on the bundled pipeline (docs/explain.md) the default ranks the word
    that alone triggers a memorized image first in 39 of 40 captions, and in 0 of 30 where it
    triggers none; gradient times embedding in 11 of the 12 captions of the choice. The denoising
    loss agrees better with masking words (rank correlation 0.75) than the CFG norm of late steps
    (0.02), and no better than that of the first step (0.75).

    Args:
        model: the pipeline.
        prompt: the words.
        score: "cfg_norm" and "guided_score_norm" at states of the generation, "-flipd" and
            "-denoising_loss" (also without their minus) at noised points around the finished
            image; guided with both halves of the Jacobian if a guidance scale is given.
        seeds: one an image; standard errors are over them.
        wrt: "tokens": embeddings of the tokens, through the text encoders; "prompt": what the
            network is given for the prompt.
        steps: steps of the generation, from 0; every second of the last half where None. The
            scores around the finished image take the sigmas of these steps; 0.3, 0.6 and 1.2
            where None.
        guidance_scale: w; the pipeline's default where None (for the scores around the finished
            image: the images are drawn with it, and None scores the prompt alone).
        num_inference_steps: steps of the generation; the pipeline's default where None.
        leave_one_out: also measure the score without each word, left out and masked, at the same
            states.
        generator: source of noises and probes; that of the prompt and seed 0 if None, so that a
            call can be repeated and prompts differ.
        generation: a generation of this prompt, to be used instead of a new one.

    Returns:
        The attribution.

    Raises:
        InputError: an option is unknown, the prompt has no words, or the pipeline lacks what the
            score needs.
    """
    check_generator(generator)
    score = score_name(score)
    if not isinstance(model, TextToImage):
        kind = type(model).__name__
        raise InputError(f"{kind} is no TextToImage; pass memfold.TextToImage(pipeline)")
    if wrt not in WRT:
        raise InputError(f"wrt = {wrt!r} is unknown; choose from {', '.join(WRT)}")
    words = words_of(prompt)
    if not words:
        raise InputError("the prompt has no words; there is nothing to attribute a score to")
    if (score in RUNNING or guidance_scale is not None) and not model.has_unconditional:
        what = f"score = {score!r}" if score in RUNNING else f"guidance_scale = {guidance_scale}"
        raise InputError(
            f"{what} needs an unconditional half, which {model.name} has not; take "
            "'-denoising_loss' or '-flipd' without guidance_scale"
        )
    options: dict[str, Any] = {}
    if num_inference_steps is not None:
        options["num_inference_steps"] = num_inference_steps
    if generation is not None and generation.prompt != prompt:
        raise InputError("generation is that of another prompt; pass that of this one, or none")
    if generation is None:
        generation = generate_watched(
            model, prompt, seeds, attention=False, guidance_scale=guidance_scale, **options
        )
    if generator is None:
        generator = prompt_generator(prompt)
    states = States(generation, score, steps, guidance_scale, base_seed(generator))
    embedded = embeddings(model, prompt, wrt)
    per_seed, warnings = _weights(prompt, states, embedded)
    n = len(per_seed)
    nan = torch.full((len(words),), float("nan"))
    left_out = fall(states, without(model, prompt)) if leave_one_out else None
    masked = fall(states, masks(model, prompt)) if leave_one_out else None
    mean, reached = per_seed.mean(0), _reached(embedded.owners)
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
        rank_correlation=None if left_out is None else _correlation(mean, left_out, reached),
        warnings=warnings,
        masked=masked,
        masked_correlation=None if masked is None else _correlation(mean, masked, reached),
    )


def _weights(
    prompt: str, states: States, embedded: Embedding
) -> tuple[Float[Tensor, "s w"], tuple[str, ...]]:
    """Weigh the words for each seed alone, so that no seed depends on its company."""
    words, seeds = words_of(prompt), len(states.generation.x)
    total = torch.zeros(seeds, len(words), dtype=torch.float64)
    with torch.enable_grad():
        for seed in range(seeds):
            values = states.scores(embedded.cond, slice(seed, seed + 1))
            for count, value in enumerate(values, start=1):
                row = gradient_of(value.sum(), embedded, len(words))
                total[seed] += (row - total[seed]) / count  # the mean over states
    if not torch.isfinite(total).all():
        raise InputError("the gradient is NaN or infinite; compute in float32")
    return total.float(), _notes(words, embedded.owners)


def _notes(words: Sequence[Word], owners: Sequence[Owner]) -> tuple[str, ...]:
    """Tell which words reached none of the encoders, or not all of them."""
    sets = [{word for word in owner if word is not None} for owner in owners]
    sets = [own for own in sets if own] or [set()]
    notes = []
    missing = [i for i in range(len(words)) if i not in set.union(*sets)]
    partly = [i for i in set.union(*sets) if i not in set.intersection(*sets)]
    if missing:
        notes.append(
            f"{_counted(len(missing))} did not reach the text encoder (too long a prompt, or "
            f"unknown characters), first {words[missing[0]].text[:40]!r}; weight 0"
        )
    if partly:
        notes.append(
            f"{_counted(len(partly))} did not reach every text encoder, first "
            f"{words[min(partly)].text[:40]!r}; the weight is that of the others"
        )
    return tuple(notes)


def _counted(n: int) -> str:
    return "1 word" if n == 1 else f"{n} words"


def _reached(owners: Sequence[Owner]) -> list[int]:
    """Find the words that reached an encoder."""
    return sorted({word for owner in owners for word in owner if word is not None})


def _correlation(weights: Tensor, drops: Tensor, reached: list[int]) -> float:
    """Correlate ranks over the words that reached an encoder; the others' zeros agree for free."""
    weights, drops = weights[reached], drops[reached]
    if len(weights) < 3 or weights.std() == 0 or drops.std() == 0:
        return float("nan")
    return float(np.asarray(spearmanr(weights.numpy(), drops.numpy()).statistic))
