"""Grids of noise levels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError


def karras_sigmas(
    sigma_min: float, sigma_max: float, n: int, *, rho: float = 7.0
) -> Float[Tensor, " n"]:
    """Make the descending grid of Karras et al. (2022), Equation 5.

    Args:
        sigma_min: smallest sigma, above 0.
        sigma_max: largest sigma.
        n: how many, at least 2.
        rho: larger: more of them at small sigma.

    Returns:
        Sigmas from sigma_max down to sigma_min, shape (n,), float64.

    Raises:
        InputError: an empty or reversed range.
    """
    if n < 2 or not 0 < sigma_min < sigma_max:
        raise InputError(
            f"{n} sigmas from {sigma_max} to {sigma_min}: take 2 or more, and 0 < min < max"
        )
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
