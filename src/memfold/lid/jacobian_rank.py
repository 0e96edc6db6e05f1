"""LID as the rank of the denoiser's Jacobian, by randomized subspace iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.linalg.rank import RULES, Rule, count_large, doubt, warn_unsettled
from memfold.linalg.subspace import leading_eigenvalues
from memfold.tensors import base_seed
from memfold.types import Estimate, InputError

from .noised import (
    MEMORY_BUDGET,
    check_points,
    jacobian_at,
    mean_over_noises,
    noised,
    rows_that_fit,
)

_ROWS = 32  # in a chunk, at most: all of them go on until the last one's rank is found
_FLOOR = 1e-3  # eigenvalues below are equally small, for the rule "ratio"


def jacobian_rank(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    n_noises: int = 4,
    rule: Rule = "threshold",
    threshold: float = 0.5,
    block: int = 16,
    max_size: int = 512,
    n_iterations: int = 3,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Estimate:
    """Count the eigenvalues of (J + J^T) / 2 near 1 at noised points x + sigma n.

    The normal bundle's count (Stanczuk et al. 2024, arXiv 2212.12611) without its 4 D residuals:
    an eigenvalue is l / (l + sigma^2), 1 along a direction of variance l >> sigma^2 and 0 along a
    normal. A random block finds the largest ones (Halko, Martinsson and Tropp 2011); as long as
    the smallest Ritz value of the last block is above `threshold`, another block is added. On an
    exact model a count of r so takes r to r + `block` directions, at 2 products each. Where J has
    no gap, as in trained networks, it takes a block more and up to 1 + `n_iterations` products,
    and a few eigenvalues near the threshold can still be missed.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        n_noises: noises a sample.
        rule: "threshold", "gap" (largest drop, with 1 and 0 at the ends) or "ratio".
        threshold: c, in (0, 1): the eigenvalue that still counts, and below which blocks stop.
        block: directions in a block.
        max_size: the most directions; where they do not suffice, a warning says so and the count
            is a lower bound, without a standard error (NaN).
        n_iterations: products with a block before its Ritz values are read, at most.
        generator: source of noises and blocks; a sample's own depend on it and on the sample.
        memory_budget: bytes that retained graphs may keep at a time.

    Returns:
        LID and its standard error over noises, shape (b,); 0 where all noises agree. With "gap" and
        "ratio", what thresholds from c to (1 + c) / 2 count otherwise is part of it: where there
        is no gap, all noises may agree on a drop that says nothing.

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def plane(x, sigma):  # normal along the first two of three axes
    ...     return x * torch.tensor([1.0, 1.0, 0.0]) / (1 + sigma**2)
    >>> jacobian_rank(plane, torch.zeros(1, 3), 0.1).lid.round()
    tensor([2.])
    """
    if n_noises < 2:
        raise InputError(f"n_noises = {n_noises} gives no standard error; take 2 or more")
    if not 0 < threshold < 1 or block < 1 or n_iterations < 1:
        raise InputError(
            f"threshold = {threshold}, block = {block}, n_iterations = {n_iterations}: threshold "
            "must lie between 0 and 1, the others be 1 or more"
        )
    if rule not in RULES:
        raise InputError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    x, seed = x.detach(), base_seed(generator)
    most = min(max_size, x[0].numel())
    size = min(rows_that_fit(denoiser, x, sigma, cond, memory_budget, most), max(_ROWS, n_noises))
    each, off, open_ends = [], [], []
    window = (threshold, (1 + threshold) / 2)  # below, not all values are known
    for rows in noised(denoiser, x, sigma, cond, n_noises=n_noises, seed=seed, batch_size=size):
        jacobian = jacobian_at(denoiser, rows, sigma)
        found = leading_eigenvalues(
            jacobian.symmetric,
            rows.x,
            above=threshold,
            block=block,
            max_size=most,
            n_iterations=n_iterations,
            seed=seed + 1,
        )
        whole = found.values.shape[1] == x[0].numel()
        count = _count(found.values, rule, threshold, whole).to(rows.x)
        each.append(count)
        if rule != "threshold":
            off.append(doubt(found.values, count, *window))
        open_ends.append(~found.complete)
    bounds = torch.cat(open_ends).reshape(len(x), -1)
    if bounds.any():
        warn_unsettled(
            f"{int(bounds.sum())} of {bounds.numel()} noised points have more than "
            f"max_size = {most} eigenvalues above {threshold}: their LID is a lower bound; raise "
            "max_size"
        )
    name = f"rank of J ({rule}, {n_noises} noises), {denoiser.space}"
    mean = mean_over_noises(torch.cat(each), len(x), sigma, name)
    known = mean.stderr.masked_fill(bounds.any(1).to(mean.stderr.device), torch.nan)
    mean = replace(mean, stderr=known)
    if not off:
        return mean
    doubts = torch.cat(off).reshape(len(x), -1).mean(1)
    return replace(mean, stderr=(mean.stderr**2 + doubts**2).sqrt())


def _count(values: Float[Tensor, "r m"], rule: Rule, threshold: float, whole: bool) -> Tensor:
    """Count the large Ritz values of each row; `whole` says that they are the whole spectrum."""
    bad = values[:, 0].isnan()
    values = values.masked_fill(bad[:, None], 0)
    least = values.nan_to_num(nan=float("inf")).amin(1, keepdim=True)
    low = {"gap": 0.0, "ratio": _FLOOR, "threshold": -float("inf")}[rule]
    values = torch.where(values.isnan(), least, values).clamp_min(low)
    ends = (1.0, low if whole else 1.0)  # what is not known below the last value is no drop
    count = count_large(values, order="descending", rule=rule, threshold=threshold, ends=ends)
    return count.to(values).masked_fill(bad, torch.nan)
