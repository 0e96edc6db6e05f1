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
    with tqdm(grid, desc="LID curve", unit="sigma", disable=not progress) as bar:
        for s in bar:
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

    The knees of single images scatter over a factor of several, at any number of noises: a curve
    is nearly as far below its chord for a wide range of scales (`knee_interval` says how wide), and
    images differ. For one scale, take the knee of the mean curve, as the audit does.

    Args:
        curve: at least 3 scales.

    Returns:
        Index of the knee into `curve.sigmas`, shape (b,); a flat curve has it at 0.

    Raises:
        InputError: fewer than 3 scales.
    """
    return _below_chord(curve)[0].argmax(1)


def knee_interval(curve: Curve) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Find the scales between which the knee of each curve may lie, as far as its errors tell.

    All scales at which the curve may be as far below its chord as at the knee: the two differ by
    less than 2 of their standard errors. These are the curve's own, those of its two ends, which
    hold the chord, and what the curve strays from a smooth one, by its third differences: there
    stands the part of an estimate that no noise of its own averages out. One step of the grid is
    added on both sides, since the knee may lie between two scales.

    Args:
        curve: at least 3 scales, with standard errors.

    Returns:
        Indices into `curve.sigmas` of the smallest and the largest of these scales, (b,) each; the
        whole grid where the curve is flat within its errors.

    Raises:
        InputError: fewer than 3 scales.

    >>> import torch
    >>> sigmas = torch.logspace(-2, 0, 9)
    >>> lid = torch.tensor([[90.0, 70.0, 50.0, 30.0, 10.0, 9.0, 8.0, 7.0, 6.0]])
    >>> tuple(int(i) for i in knee_interval(Curve(sigmas, lid, torch.ones(1, 9) / 2, "made up")))
    (3, 5)
    """
    below, u, span = _below_chord(curve)
    stray = curve.lid.diff(n=3, dim=1) / 20**0.5  # of noise with unit variance: 1
    rough = stray.abs().median(1, keepdim=True).values / 0.6745 if stray.shape[1] else 0
    error = (curve.stderr.nan_to_num(0) ** 2 + rough**2).sqrt() / span
    knee = below.argmax(1, keepdim=True)
    ends = (u * error[:, -1:]) ** 2 + ((1 - u) * error[:, :1]) ** 2
    at_knee = error.gather(1, knee) ** 2 + ends.gather(1, knee)
    gap = below.amax(1, keepdim=True) - below
    near = gap <= 2 * (error**2 + ends + at_knee).sqrt()
    last = near.shape[1] - 1
    first = near.to(torch.int8).argmax(1)
    final = last - near.flip(1).to(torch.int8).argmax(1)
    return (first - 1).clamp_min(0), (final + 1).clamp_max(last)


def _below_chord(curve: Curve) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far each curve lies below its chord, where on it, and the curve's range.

    Raises:
        InputError: fewer than 3 scales.
    """
    if len(curve.sigmas) < 3:
        raise InputError(f"a curve of {len(curve.sigmas)} scales has no knee; give 3 or more")
    u = curve.sigmas.log()
    u = ((u - u[0]) / (u[-1] - u[0])).to(curve.lid)
    low, high = curve.lid.amin(1, keepdim=True), curve.lid.amax(1, keepdim=True)
    span = (high - low).clamp_min(1e-12)
    return 1 - u - (curve.lid - low) / span, u, span


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
