"""LID by the denoising loss at the finished image (Yeats et al. 2025, arXiv 2510.12975)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned
from memfold.lid.dsm import dsm_lid
from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .flipd import guided

LOSS_NOISES = 8


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
    fixed = Conditioned(generation.model.model, generation.cond)
    return -dsm_lid(fixed, generation.x, sigma, n_noises=LOSS_NOISES, generator=generator).lid


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
    fixed = Conditioned(generation.model.model, generation.uncond)
    return -dsm_lid(fixed, generation.x, sigma, n_noises=LOSS_NOISES, generator=generator).lid


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
    fixed = Conditioned(guided(generation), generation.cond)
    return -dsm_lid(fixed, generation.x, sigma, n_noises=LOSS_NOISES, generator=generator).lid
