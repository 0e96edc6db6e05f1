"""A soft count of the tangent directions (Osada 2026, arXiv 2605.01221)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned
from memfold.lid.spectral import spectral_lid
from memfold.sampling.trajectory import Generation

from .base import SIGMA


def spectral_conditional(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """Minus the soft count of directions under the prompt, by stochastic Lanczos quadrature.

    Args:
        generation: a run of the pipeline.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): minus degrees of freedom.
    """
    fixed = Conditioned(generation.model.model, generation.cond)
    return -spectral_lid(fixed, generation.x, sigma, n_noises=2, n_steps=4, generator=generator).lid
