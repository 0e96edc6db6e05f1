"""FLIPD at the finished image (Kamkari et al. 2024; Ross et al. 2025)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .shell import shell


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
    return -shell(generation, sigma, generator).trace("with")


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
    return -shell(generation, sigma, generator).trace("without")


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
    return -shell(generation, sigma, generator).trace("guided")


def flipd_conditional_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """FLIPD under the prompt at D_w(x_T), which the first step foresees.

    A prompt that is known by heart foresees its image at once, others a blur, which leaves the
    model fewer degrees of freedom: here the sign is the other one than at the finished image.
    It was settled on the bundled pipeline (docs/detectors.md).

    Args:
        generation: a run.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").trace("with")


def flipd_unconditional_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """FLIPD without the prompt at D_w(x_T); large where the first step foresees an image.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").trace("without")


def flipd_guided_first(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """FLIPD of the guided model at D_w(x_T); large where the first step foresees an image.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    return shell(generation, sigma, generator, "first").trace("guided")
