"""Norm and alignment on pure noise (Asthana and Belagiannis 2026, arXiv 2601.20642)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation
from memfold.tensors import expand

LOW_SIGMA = 0.1


@torch.no_grad()
def anisotropy(
    generation: Generation,
    *,
    generator: torch.Generator | None = None,
    norm_weight: float = 1.0,
    alignment_weight: float = 1.0,
    low_sigma: float = LOW_SIGMA,
) -> Float[Tensor, " b"]:
    """g1 |eps_c - eps_0| at the largest noise + g2 cos(s_c - s_0, s_0) at a small one.

    Both are taken at pure noise, so that nothing need be denoised: the network is given the first
    step's own input, once as what it is and once as a latent at small noise. At large noise the
    density is nearly isotropic and the norm tells; at small noise the alignment of the prompt's
    pull with the score that the model has anyway. The published weights are fitted to Stable
    Diffusion; here both are 1. Published for Stable Diffusion 1.4 with one image: AUROC .994, TPR
    .935 at 1 % FPR.

    Args:
        generation: a run with guidance.
        generator: not used; nothing is random.
        norm_weight: g1.
        alignment_weight: g2.
        low_sigma: the small noise, in latent units.

    Returns:
        One score an image, shape (b,).
    """
    view, model = generation.first, generation.model
    low = max(low_sigma, model.schedule.sigma_min)
    one = torch.ones(1)
    scale = model.to_ve(one, one * view.sigma) / model.to_ve(one, one * low)
    x = view.x / float(scale)
    without = model.model(x, low, generation.uncond)
    pull = model.model(x, low, generation.cond) - without
    base = (without - x) / expand(low, x)
    aligned = torch.cosine_similarity(pull.flatten(1), base.flatten(1), dim=1)
    return norm_weight * view.cfg_norm + alignment_weight * aligned
