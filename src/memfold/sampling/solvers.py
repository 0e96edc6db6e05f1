"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma, as generators.

Each yields its steps, so that the caller owns progress, logging and stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser


@dataclass(frozen=True)
class Step:
    """One step of a solver.

    Attributes:
        x: the point after the step, shape (b, *d).
        denoised: D at the point before it, shape (b, *d).
        sigma: noise standard deviation after the step.
    """

    x: Float[Tensor, "b *d"]
    denoised: Float[Tensor, "b *d"]
    sigma: float


@torch.no_grad()
def heun(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigmas: Sequence[float],
    cond: Any = None,
) -> Iterator[Step]:
    """Solve by Heun's method, second order (Karras et al. 2022, Algorithm 1 without noise).

    Args:
        denoiser: the model.
        x: points at the first sigma, shape (b, *d).
        sigmas: descending noise levels, all within the model's range; the last step goes from the
            last of them to the denoised point.
        cond: condition.

    Yields:
        The steps; the last has sigma 0.
    """
    denoiser = as_denoiser(denoiser)
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        denoised = denoiser(x, sigma, cond)
        slope = (x - denoised) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (ahead - denoiser(ahead, after, cond)) / after) / 2
            ahead = x + (after - sigma) * slope
        x = ahead
        yield Step(x, denoised, after)


@torch.no_grad()
def euler(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigmas: Sequence[float],
    cond: Any = None,
) -> Iterator[Step]:
    """Solve by Euler's method, first order: DDIM (Song et al. 2021) in VE coordinates.

    Args:
        denoiser: the model.
        x: points at the first sigma, shape (b, *d).
        sigmas: descending noise levels, as for `heun`.
        cond: condition.

    Yields:
        The steps; the last has sigma 0.
    """
    denoiser = as_denoiser(denoiser)
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        denoised = denoiser(x, sigma, cond)
        x = x + (after - sigma) * (x - denoised) / sigma
        yield Step(x, denoised, after)
