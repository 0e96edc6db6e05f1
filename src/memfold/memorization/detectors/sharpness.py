"""Sharpness (Jeon et al. 2025, arXiv 2412.04140)."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.linalg.jacobian import Jacobian
from memfold.sampling.trajectory import Generation
from memfold.tensors import per_sample


def sharpness(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """log |(H_c - H_0)(s_c - s_0)|^2 at the first step, H the Hessian of the log-density.

    With H = (J - I) / sigma^2 and s = (D - x) / sigma^2 the product is
    (J_c - J_0)(D_c - D_0) / sigma^4: one vector-Jacobian product with each half. Published for
    Stable Diffusion 1.4 with one image: AUROC .987, TPR .908 at 1 % FPR.

    Args:
        generation: a run with guidance.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    model, view = generation.model.model, generation.first
    without = torch.zeros_like(view.x) if view.unconditional is None else view.unconditional
    v = (view.conditional - without) / view.sigma**2
    halves = []
    for cond in (generation.cond, generation.uncond):
        jacobian = Jacobian(partial(model, sigma=view.sigma, cond=cond), view.x, view.sigma)
        halves.append(jacobian.vjp(v))
    difference = (halves[0] - halves[1]) / view.sigma**2
    return per_sample(difference**2).clamp_min(1e-30).log()
