"""LID from densities of noised data (Tempczyk et al. 2022, arXiv 2206.14882)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import Estimate

from .fpregress import check_batch, check_grid, check_log_prob, slope_over_log


@torch.no_grad()
def lidl(
    log_probs: Mapping[float, Callable[[Tensor], Tensor]], x: Float[Tensor, "b *d"]
) -> Estimate:
    """Estimate LID(x) = D + slope of log p_sigma(x) over log sigma, one model a sigma.

    Each density model (a normalizing flow, in the paper) is fitted to the data with noise of its
    own standard deviation; LIDL is the regression of Theorem 1 there. `fpregress` is the same line
    through one density that knows all sigmas. Here each model errs on its own, so that the scatter
    about the line is a fair standard error of the slope.

    Args:
        log_probs: from sigma to `x -> log p_sigma(x)`, shape (b,), for at least 3 sigmas.
        x: points, shape (b, *d).

    Returns:
        LID at the geometric mean of the sigmas, and the standard error of the slope with half of
        its change over the grid, as in `fpregress`, shape (b,).

    Raises:
        InputError: points, sigmas or log densities that cannot be used.

    >>> import torch
    >>> def noised(sigma):  # a line in the plane, with noise
    ...     variances = torch.tensor([1.0, 0.0]) + sigma**2
    ...     return lambda x: -(variances.log() + x**2 / variances).sum(1) / 2
    >>> lidl({s: noised(s) for s in (0.01, 0.02, 0.04)}, torch.zeros(1, 2)).lid.round()
    tensor([1.])
    """
    grid = check_grid(sorted(log_probs))
    check_batch(x)
    models = dict(sorted(log_probs.items()))
    rows = [check_log_prob(f(x), x, s) for s, f in models.items()]
    slope, stderr = slope_over_log(grid, torch.stack(rows, 1), bent=True)
    scale = float(torch.tensor(grid, dtype=torch.float64).log().mean().exp())
    lid = x[0].numel() + slope
    return Estimate(lid.to(x), stderr.to(x), scale, f"LIDL ({len(grid)} models), points")
