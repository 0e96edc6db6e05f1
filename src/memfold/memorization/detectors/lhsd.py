"""A soft count of the tangent directions, after LHSD (Osada 2026, arXiv 2605.01221)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned
from memfold.lid.spectral import Count, spectral_lid
from memfold.sampling.trajectory import Generation

from .base import SIGMA


def spectral_conditional(
    generation: Generation,
    *,
    generator: torch.Generator | None = None,
    sigma: float = SIGMA,
    count: Count = "one-sided",
    c: float | None = None,
) -> Float[Tensor, " b"]:
    """Minus the soft count of directions under the prompt, by stochastic Lanczos quadrature.

    The default count is ours, one-sided; the paper's is `count="lhsd"` (see `spectral_lid`).

    Args:
        generation: a run of the pipeline.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.
        count: "one-sided" or "lhsd".
        c: the cutoff of "lhsd".

    Returns:
        One score an image, shape (b,): minus degrees of freedom.
    """
    fixed = Conditioned(generation.model.model, generation.cond)
    estimate = spectral_lid(
        fixed,
        generation.x,
        sigma,
        count=count,
        c=c,
        n_noises=2,
        n_steps=4,
        generator=generator,
    )
    return -estimate.lid
