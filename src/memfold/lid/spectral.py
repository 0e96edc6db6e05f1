"""A soft count of the directions that the model leaves free, from the spectrum of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.linalg.jacobian import Jacobian
from memfold.linalg.spectrum import quadratic_form
from memfold.tensors import base_seed, rademacher_like
from memfold.types import Estimate, InputError

from .noised import MEMORY_BUDGET, check_points, mean_over_noises, noised, rows_that_fit


def spectral_lid(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    n_noises: int = 8,
    n_steps: int = 8,
    threshold: float = 0.5,
    power: float = 4.0,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Estimate:
    """Count the eigenvalues of (J + J^T) / 2 near 1 at noised points.

    LID = E_n tr f(S), f(l) = l^p / (l^p + (c (1 - l) / (1 - c))^p) on [0, 1], 0 below, 1 above, so
    that f(c) = 1/2. As S = I + sigma^2 H, this counts small curvatures, like the transition of
    Osada (2026, arXiv 2605.01221), 1 / (1 + (|h| / kappa)^p); that one gives each of the many
    normal directions (l = 0) a weight of 1/17, which at 500 ambient dimensions adds 29; ours gives
    them none. Negative eigenvalues, which trained networks have in numbers, count as none too. By
    stochastic Lanczos quadrature (Ubaru et al. 2017), one probe a noise.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        n_noises: noises a sample.
        n_steps: Lanczos steps; each is one backward and two forward passes.
        threshold: c, the eigenvalue at which a direction counts one half, in (0, 1).
        power: p, the sharpness of the count.
        generator: source of noises and probes; a sample's own depend on it and on the sample.
        memory_budget: bytes that retained graphs may keep at a time.

    Returns:
        LID and its standard error over noises, shape (b,).

    Raises:
        InputError: points, sigma or options that cannot be used.
    """
    if n_noises < 2:
        raise InputError(f"n_noises = {n_noises} gives no standard error; take 2 or more")
    if n_steps < 1 or not 0 < threshold < 1 or not power > 0:
        raise InputError(
            f"n_steps = {n_steps}, threshold = {threshold}, power = {power}: n_steps and power "
            "must be above 0, threshold between 0 and 1"
        )
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    x, seed = x.detach(), base_seed(generator)
    size = rows_that_fit(denoiser, x, sigma, cond, memory_budget)
    each = []
    for rows in noised(denoiser, x, sigma, cond, n_noises=n_noises, seed=seed, batch_size=size):
        jacobian = Jacobian(rows.f, rows.x, sigma)
        probe = rademacher_like(rows.x, 1, seed + 1)[:, 0]
        each.append(quadratic_form(jacobian.symmetric, _count(threshold, power), probe, n_steps))
    name = f"spectral count ({n_steps} Lanczos steps), {denoiser.space}"
    return mean_over_noises(torch.cat(each), len(x), sigma, name)


def _count(threshold: float, power: float) -> Callable[[Tensor], Tensor]:
    def f(l: Tensor) -> Tensor:
        l = l.clamp(0, 1)
        up, down = l**power, (threshold * (1 - l) / (1 - threshold)) ** power
        return up / (up + down)

    return f
