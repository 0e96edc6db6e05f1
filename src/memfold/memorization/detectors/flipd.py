"""FLIPD at the finished image (Kamkari et al. 2024; Ross et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned, Denoiser
from memfold.denoisers.guidance import Guided
from memfold.lid.flipd import flipd
from memfold.sampling.trajectory import Generation

from .base import NOISES, PROBES, SIGMA


def flipd_conditional(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-FLIPD of the model under the prompt, at noised points around the finished image.

    Ross et al. (2025) use it to find memorized captions of Stable Diffusion 1.5.

    Args:
        generation: a run of the pipeline.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): minus degrees of freedom.
    """
    return _score(generation, generation.model.model, generation.cond, generator, sigma)


def flipd_unconditional(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-FLIPD of the model without the prompt; needs no prompt.

    Args:
        generation: a run of the pipeline.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return _score(generation, generation.model.model, generation.uncond, generator, sigma)


def flipd_guided(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """-FLIPD of the guided model D_w, with the Jacobians of both halves.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return _score(generation, guided(generation), generation.cond, generator, sigma)


def guided(generation: Generation) -> Denoiser:
    """Return D_w of the run; D_c where it used no guidance."""
    scale = 1.0 if generation.guidance_scale is None else generation.guidance_scale
    if generation.uncond is None:
        return generation.model.model
    return Guided(generation.model.model, scale, uncond=generation.uncond)


def _score(
    generation: Generation,
    model: Denoiser,
    cond: Any,
    generator: torch.Generator | None,
    sigma: float,
) -> Tensor:
    fixed = Conditioned(model, cond)
    return -flipd(
        fixed,
        generation.x,
        sigma,
        n_noises=NOISES,
        trace="hutchinson",
        n_probes=PROBES,
        generator=generator,
    ).lid
