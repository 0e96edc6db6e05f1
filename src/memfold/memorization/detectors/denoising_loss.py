"""LID by the denoising loss at the finished image (Yeats et al. 2025, arXiv 2510.12975)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .shell import shell


def loss_conditional(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-E |n - eps_c(x + sigma n)|^2: forward passes only; the honest baseline of a LID.

    Args:
        generation: a run of the pipeline.
        generator: source of noises.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): minus degrees of freedom.
    """
    return -shell(generation, sigma, generator).loss("with")


def loss_unconditional(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-E |n - eps_0(x + sigma n)|^2; needs no prompt.

    Args:
        generation: a run of the pipeline.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return -shell(generation, sigma, generator).loss("without")


def loss_guided(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-E |n - eps_w(x + sigma n)|^2 of the guided model.

    Args:
        generation: a run with guidance.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return -shell(generation, sigma, generator).loss("guided")


def loss_conditional_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """E |n - eps_c|^2 at D_w(x_T), which the first step foresees.

    Large where that is an image and no blur: see `flipd_conditional_first`.

    Args:
        generation: a run.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").loss("with")


def loss_unconditional_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """E |n - eps_0|^2 at D_w(x_T); large where the first step foresees an image.

    Args:
        generation: a run with guidance.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").loss("without")


def loss_guided_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """E |n - eps_w|^2 at D_w(x_T); large where the first step foresees an image.

    Args:
        generation: a run with guidance.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").loss("guided")
