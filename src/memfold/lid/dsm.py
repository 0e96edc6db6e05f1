"""LID from the denoising loss (Yeats et al. 2025, arXiv 2510.12975): forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.tensors import base_seed, per_sample
from memfold.types import Estimate, InputError

from .noised import check_points, mean_over_noises, noised


def dsm_lid(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    n_noises: int = 16,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Estimate:
    """Estimate LID_theta(x) = E_n |n - eps(x + sigma n)|^2 with eps(y) = (y - D(y)) / sigma.

    The noise that the model cannot remove is the part along its manifold: one unit of variance for
    each dimension. By Stein's identity E |n - eps|^2 = 2 E tr J - D + E |eps|^2, so that it agrees
    with the trace of the Jacobian wherever E |eps|^2 = D - LID.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        n_noises: noises a sample; one forward pass each.
        generator: source of the noises; a sample's own depend on it and on the sample.
        batch_size: rows (noises of samples) in one forward pass.

    Returns:
        LID and its standard error over noises, shape (b,).

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def plane(x, sigma):  # normal along the first two of three axes
    ...     return x * torch.tensor([1.0, 1.0, 0.0]) / (1 + sigma**2)
    >>> generator = torch.Generator().manual_seed(0)
    >>> dsm_lid(plane, torch.zeros(1, 3), 0.1, n_noises=256, generator=generator).lid.round()
    tensor([2.])
    """
    loss, _ = denoising_residuals(
        denoiser, x, sigma, cond=cond, n_noises=n_noises, generator=generator, batch_size=batch_size
    )
    space = as_denoiser(denoiser).space
    return mean_over_noises(loss.flatten(), len(x), sigma, f"denoising loss, {space}")


@torch.no_grad()
def denoising_residuals(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    n_noises: int = 16,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Compute |n - eps|^2 and the orthogonality gap <eps, eps - n> for every noise.

    For the true posterior mean the gap is zero on average over the data, since eps = E[n | x]. A
    large positive gap at x says that the model pulls x elsewhere: it does not fit there.

    Args:
        denoiser: as in `dsm_lid`.
        x: clean points, shape (b, *d).
        sigma: noise standard deviation.
        cond: condition, passed through.
        n_noises: noises a sample, at least 2.
        generator: source of the noises.
        batch_size: rows in one forward pass.

    Returns:
        Losses and gaps, each of shape (b, n).

    Raises:
        InputError: points, sigma or options that cannot be used.
    """
    if n_noises < 2:
        raise InputError(f"n_noises = {n_noises} gives no standard error; take 2 or more")
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    seed = base_seed(generator)
    loss, gap = [], []
    for rows in noised(
        denoiser, x, sigma, cond, n_noises=n_noises, seed=seed, batch_size=batch_size
    ):
        eps = (rows.x - rows.f(rows.x)) / sigma
        loss.append(per_sample((rows.noise - eps) ** 2))
        gap.append(per_sample(eps * (eps - rows.noise)))
    shape = (len(x), n_noises)
    return torch.cat(loss).reshape(shape), torch.cat(gap).reshape(shape)
