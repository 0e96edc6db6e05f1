"""The degrees of freedom that a prompt takes away: LID(x) - LID(x | c)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .shell import shell


def freedom_taken(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """tr J_0 - tr J_c around the finished image, with common noises and common probes.

    Conditioning can only lower the dimension (Ross et al. 2025, their proposition on conditional
    LID), so that the difference is never negative for an exact model; it does not suffer from
    images that are simple in themselves, whose LID is small with and without the prompt.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): degrees of freedom.
    """
    around = shell(generation, sigma, generator)
    return around.trace("without") - around.trace("with")


def freedom_taken_loss(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """The same by denoising losses with common noises: forward passes only.

    Args:
        generation: a run with guidance.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,): degrees of freedom.
    """
    around = shell(generation, sigma, generator)
    return around.loss("without") - around.loss("with")
