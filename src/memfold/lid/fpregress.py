"""LID as the slope of an explicit log density over log sigma (Kamkari et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import Estimate, InputError


@torch.no_grad()
def fpregress(
    log_prob: Callable[[Tensor, float], Tensor],
    x: Float[Tensor, "b *d"],
    sigmas: Sequence[float],
) -> Estimate:
    """Estimate LID(x) = D + d log p_sigma(x) / d log sigma by regression over a grid of sigmas.

    p_sigma is the density after noise of standard deviation sigma. Around a d-dimensional manifold
    it grows like sigma^(d - D) as sigma shrinks (Kamkari et al. 2024, arXiv 2406.03537, section 4;
    there by a solver of the Fokker-Planck equation). By that equation the slope at one sigma is
    FLIPD - D. So this is for explicit densities: with a diffusion model one would first integrate
    FLIPD to get log p_sigma, and then differentiate it again; take `flipd` instead.

    Args:
        log_prob: `(x, sigma) -> log p_sigma(x)`, shape (b,), up to a constant.
        x: points, shape (b, *d).
        sigmas: at least 3 noise standard deviations, ascending; a narrow grid measures one scale.

    Returns:
        LID at the geometric mean of the sigmas, shape (b,). Nothing is random here: the standard
        error is that of the slope about a straight line, and half of how much the slope changes
        over the grid. It so reaches the LIDs of all scales of the grid, and of none below it.

    Raises:
        InputError: points, sigmas or log densities that cannot be used.

    >>> import torch
    >>> def log_prob(x, sigma):  # a line in the plane, with noise
    ...     variances = torch.tensor([1.0, 0.0]) + sigma**2
    ...     return -(variances.log() + x**2 / variances).sum(1) / 2
    >>> fpregress(log_prob, torch.zeros(1, 2), [0.01, 0.02, 0.04]).lid.round()
    tensor([1.])
    """
    grid = check_grid(sigmas)
    check_batch(x)
    rows = [check_log_prob(log_prob(x, s), x, s) for s in grid]
    slope, stderr = slope_over_log(grid, torch.stack(rows, 1), bent=True)
    scale = float(torch.tensor(grid, dtype=torch.float64).log().mean().exp())
    lid = x[0].numel() + slope
    return Estimate(lid.to(x), stderr.to(x), scale, f"FPRegress ({len(grid)} scales), points")


def slope_over_log(
    sigmas: Sequence[float], values: Float[Tensor, "b s"], *, bent: bool = False
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Fit a line to values over log sigma by least squares.

    Args:
        sigmas: at least 3.
        values: one row a sample.
        bent: whether the lines may bend: half of the change of slope over the grid, by a parabola,
            is then part of the error, less what scatter alone would make of it.

    Returns:
        The slopes and their standard errors, sqrt(RSS / (s - 2) / sum (u - mean u)^2) for straight
        lines, shape (b,) each.
    """
    u = torch.tensor(sigmas, dtype=torch.float64, device=values.device).log()
    u, y = u - u.mean(), values.double()
    y = y - y.mean(1, keepdim=True)
    slope = (y @ u) / (u @ u)
    rest = ((y - slope[:, None] * u) ** 2).sum(1)
    square = rest / (len(u) - 2) / (u @ u)
    return slope, (square + _lack(u, y - slope[:, None] * u) if bent else square).sqrt()


def _lack(u: Float[Tensor, " s"], rest: Float[Tensor, "b s"]) -> Float[Tensor, " b"]:
    """Square half the change of slope over the grid, by the parabola that the residuals follow."""
    bow = u**2 - (u**2).mean() - u * ((u**3).sum() / (u @ u))  # orthogonal to 1 and u
    height = (rest @ bow) / (bow @ bow)
    left = ((rest - height[:, None] * bow) ** 2).sum(1)
    scatter = left / max(len(u) - 3, 1) / (bow @ bow)
    return (height**2 - scatter).clamp_min(0) * (u[-1] - u[0]) ** 2


def check_grid(sigmas: Sequence[float]) -> list[float]:
    """Return the sigmas as numbers.

    Raises:
        InputError: fewer than 3, or not ascending from above 0.
    """
    grid = [float(s) for s in sigmas]
    if len(grid) < 3 or not grid[0] > 0 or any(not a < b for a, b in pairwise(grid)):
        raise InputError(f"sigmas = {grid} must ascend from above 0 and hold 3 or more")
    return grid


def check_batch(x: Tensor) -> None:
    """Refuse what is no batch of finite points.

    Raises:
        InputError: with the row at fault.
    """
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; pass a batch of points, (b, *d), b >= 1")
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x has dtype {x.dtype}; pass floating-point points, float32 or wider")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise InputError(f"x[{int(bad.nonzero()[0])}] holds NaN or infinity; remove that point")


def check_log_prob(value: Tensor, x: Tensor, sigma: float) -> Float[Tensor, " b"]:
    """Return the log densities, one finite number a point.

    Raises:
        InputError: another shape, or no number at some point.
    """
    if value.shape != (len(x),):
        raise InputError(
            f"log_prob returned shape {tuple(value.shape)} for {len(x)} points; return ({len(x)},)"
        )
    bad = ~value.isfinite()
    if bad.any():
        raise InputError(
            f"log_prob is NaN or infinite at x[{int(bad.nonzero()[0])}], sigma = {sigma:.4g}; "
            "take a larger sigma, or remove that point"
        )
    return value.detach()
