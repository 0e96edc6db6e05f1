"""Samples of a model, each with its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.types import InputError

from .grids import karras_sigmas
from .solvers import heun


def generate(
    denoiser: Denoiser, seeds: Sequence[int], *, n_steps: int = 30, cond: Any = None
) -> Float[Tensor, "b *d"]:
    """Draw one sample for each seed, by Heun's method on the grid of Karras et al. (2022).

    Args:
        denoiser: a model that knows its shape and a finite range of sigma.
        seeds: one a sample; a sample depends on its own seed alone.
        n_steps: noise levels; two network calls each.
        cond: condition.

    Returns:
        Points x, shape (b, *d).

    Raises:
        InputError: no seeds, or a model that does not know its shape or range.
    """
    denoiser = as_denoiser(denoiser)
    if len(seeds) == 0:
        raise InputError("seeds is empty; give one for each sample")
    if denoiser.shape is None or not denoiser.sigma_max < float("inf"):
        raise InputError("this denoiser knows no shape or no largest sigma: it cannot generate")
    noise = torch.stack(
        [torch.randn(denoiser.shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    low = max(denoiser.sigma_min, 1e-3)
    sigmas = karras_sigmas(low, denoiser.sigma_max, n_steps).clamp(low, denoiser.sigma_max)
    x = noise.to(denoiser.device, denoiser.point_dtype) * denoiser.sigma_max
    for step in heun(denoiser, x, sigmas.tolist(), cond):
        x = step.x
    return x
