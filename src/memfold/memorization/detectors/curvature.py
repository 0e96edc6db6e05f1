"""Curvature difference (Kim and Lee 2026, arXiv 2605.26756): where freedom is taken away."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .shell import shell


def curvature_map(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, "b *d"]:
    """Estimate diag J_0 - diag J_c around the finished image (Bekas et al. 2007 for the diagonal).

    E[v * J v] over random signs v is the diagonal. Noises and probes are common to both halves.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        A map in the shape of the latents: degrees of freedom that the prompt takes away at each
        number of the latent.
    """
    around = shell(generation, sigma, generator)
    return around.diagonal("without") - around.diagonal("with")


def curvature_difference(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """Norm of the curvature map, summed over channels.

    Published for Stable Diffusion 1.4 with one image: AUROC about .998, TPR about .98 at 1 % FPR.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale.

    Returns:
        One score an image, shape (b,).
    """
    where = curvature_map(generation, generator=generator, sigma=sigma)
    where = where.sum(1) if where.ndim == 4 else where.sum(-1)
    return where.flatten(1).norm(dim=1)
