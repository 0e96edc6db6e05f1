"""LID over scales: curves over sigma, their knee and their plateau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.tensors import base_seed, check_generator
from memfold.types import Curve, Estimate, InputError

from .dsm import dsm_lid
from .flipd import flipd
from .spectral import spectral_lid

ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "dsm": dsm_lid,
    "flipd": flipd,
    "spectral": spectral_lid,
}


def lid_curve(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigmas: Sequence[float] | None = None,
    *,
    estimator: str = "dsm",
    cond: Any = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **options: Any,
) -> Curve:
    """Estimate the LID at every scale of a grid, with the same noises at each.

    A column is what the estimator alone gives with a generator in the same state.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigmas: ascending noise standard deviations; `default_sigmas` where None.
        estimator: "dsm", "flipd" or "spectral".
        cond: condition, passed through.
        generator: source of randomness.
        progress: show a progress bar over the grid.
        **options: keywords of the estimator.

    Returns:
        The curve, LID and standard errors of shape (b, s).

    Raises:
        InputError: an unknown estimator, a grid that does not ascend, or what it refuses itself.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator {estimator!r} is unknown; choose from {', '.join(ESTIMATORS)}")
    check_generator(generator)
    denoiser = as_denoiser(denoiser)
    grid = default_sigmas(denoiser) if sigmas is None else [float(s) for s in sigmas]
    if not grid or any(b <= a for a, b in pairwise(grid)):
        raise InputError(f"sigmas = {grid} must ascend and hold at least one number")
    source = generator or torch.Generator().manual_seed(base_seed(None))
    state, results = source.get_state(), []
    for s in tqdm(grid, desc="LID curve", unit="sigma", disable=not progress):
        source.set_state(state)
        estimate = ESTIMATORS[estimator](denoiser, x, s, cond=cond, generator=source, **options)
        results.append(estimate)
    lid = torch.stack([r.lid for r in results], 1)
    stderr = torch.stack([r.stderr for r in results], 1)
    return Curve(torch.tensor(grid, dtype=torch.float64), lid, stderr, results[0].method)


def default_sigmas(denoiser: Denoiser, n: int = 12) -> list[float]:
    """Make the grid of scales that suits data of about unit size: log-spaced from .02 to 2.

    Args:
        denoiser: limits the grid to its range.
        n: how many.

    Returns:
        Ascending sigmas.

    Raises:
        InputError: the model's range does not meet that of the grid.
    """
    low, high = max(0.02, denoiser.sigma_min), min(2.0, denoiser.sigma_max)
    if not low < high:
        raise InputError(
            f"the model's sigmas, {denoiser.sigma_min:.4g} to {denoiser.sigma_max:.4g}, do not "
            "meet the default grid of 0.02 to 2; give sigmas"
        )
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return (low ** (1 - ramp) * high**ramp).clamp(low, high).tolist()


def knee(curve: Curve) -> Int[Tensor, " b"]:
    """Find the knee of each curve over log sigma (kneedle, Satopaa et al. 2011, without smoothing).

    A falling convex curve bends where it lies furthest below the chord of its ends, both axes
    scaled to [0, 1]. FLIPD's default choice of sigma.

    Args:
        curve: at least 3 scales.

    Returns:
        Index of the knee into `curve.sigmas`, shape (b,); a flat curve has it at 0.

    Raises:
        InputError: fewer than 3 scales.
    """
    if len(curve.sigmas) < 3:
        raise InputError(f"a curve of {len(curve.sigmas)} scales has no knee; give 3 or more")
    u = curve.sigmas.log()
    u = ((u - u[0]) / (u[-1] - u[0])).to(curve.lid)
    low, high = curve.lid.amin(1, keepdim=True), curve.lid.amax(1, keepdim=True)
    v = (curve.lid - low) / (high - low).clamp_min(1e-12)
    return (1 - u - v).argmax(1)


def plateau(curve: Curve, *, width: int = 3) -> Int[Tensor, " b"]:
    """Find where each curve is flattest: the middle of the window with the smallest slope.

    The slope is the range of log LID over the window, per unit of log sigma, with LID below 1
    counted as 1; a peak within the window is no plateau.

    Args:
        curve: at least `width` scales.
        width: scales in the window, odd.

    Returns:
        Index into `curve.sigmas`, shape (b,).

    Raises:
        InputError: a window that is even or longer than the curve.
    """
    if width % 2 == 0 or not 3 <= width <= len(curve.sigmas):
        raise InputError(f"width = {width}; take an odd one from 3 to {len(curve.sigmas)}")
    logs, u = curve.lid.clamp_min(1).log(), curve.sigmas.log().to(curve.lid)
    windows = logs.unfold(1, width, 1)
    slope = (windows.amax(2) - windows.amin(2)) / (u[width - 1 :] - u[: 1 - width])
    return slope.argmin(1) + width // 2
