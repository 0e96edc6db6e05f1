"""FLIPD: LID from the Fokker-Planck equation (Kamkari et al. 2024, arXiv 2406.03537)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.linalg.jacobian import Jacobian
from memfold.linalg.trace import Trace
from memfold.linalg.trace import trace as estimate_trace
from memfold.tensors import base_seed, per_sample
from memfold.types import Estimate, InputError

from .noised import (
    MEMORY_BUDGET,
    Rows,
    check_points,
    jacobian_at,
    mean_over_noises,
    noised,
    rows_that_fit,
)


def flipd(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    at: str = "noised",
    n_noises: int = 8,
    trace: str = "auto",
    n_probes: int = 4,
    max_probes: int = 128,
    tol: float = 0.5,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Estimate:
    """Estimate LID_theta(x) by the trace of the denoiser's Jacobian.

    at="x": tr dD/dx + |D(x) - x|^2 / sigma^2 at x itself, FLIPD as published (its Theorem 3.1 in
    VE coordinates). Exact models; trained ones answer badly there, down to negative dimensions.
    at="noised": E_n tr dD/dx at x + sigma n, on the shell where the network was trained.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        at: "noised" or "x".
        n_noises: noises a sample, for at="noised".
        trace: "auto", "exact", "hutchinson", "hutch++" or "xnystrace".
        n_probes: products a row, where `trace` does not choose.
        max_probes: the most products that "auto" takes for a row.
        tol: standard error of one row at which "auto" stops, in degrees of freedom.
        generator: source of noises and probes; a sample's own depend on it and on the sample.
        memory_budget: bytes that retained graphs may keep at a time.

    Returns:
        LID and its standard error over noises (at="noised") or probes (at="x"), shape (b,).

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def plane(x, sigma):  # normal along the first two of three axes
    ...     return x * torch.tensor([1.0, 1.0, 0.0]) / (1 + sigma**2)
    >>> flipd(plane, torch.zeros(1, 3), 0.1).lid.round()
    tensor([2.])
    """
    if at not in ("noised", "x"):
        raise InputError(f"at = {at!r} is unknown; choose 'noised' or 'x'")
    if at == "noised" and n_noises < 2:
        raise InputError(f"n_noises = {n_noises} gives no standard error; take 2 or more")
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    x, seed, n = x.detach(), base_seed(generator), n_noises if at == "noised" else 0
    vectors = 0 if trace == "exact" else max_probes if trace == "auto" else n_probes
    size = rows_that_fit(denoiser, x, sigma, cond, memory_budget, vectors)
    values, errors, low_rank = [], [], []
    options: dict[str, Any] = {"method": trace, "n_probes": n_probes, "max_probes": max_probes}
    options |= {"tol": tol, "seed": seed + 1}
    for rows in noised(denoiser, x, sigma, cond, n_noises=n, seed=seed, batch_size=size):
        jacobian = jacobian_at(denoiser, rows, sigma)
        result = _row_traces(jacobian, rows, options)
        shift = per_sample((jacobian.value - rows.x) ** 2) / sigma**2 if at == "x" else 0
        values.append(result.value + shift)
        errors.append(result.stderr)
        low_rank.append(result.low_rank)
    within = torch.cat(errors)
    name = _name(at, trace, torch.cat(low_rank), within, denoiser.space)
    return mean_over_noises(torch.cat(values), len(x), sigma, name, within)


def _row_traces(jacobian: Jacobian, rows: Rows, options: dict[str, Any]) -> Trace:
    def product(v: Tensor, index: Tensor) -> Tensor:
        if len(index) == len(rows.x):
            return jacobian.vjp(v)
        return jacobian.vjp(torch.zeros_like(rows.x).index_copy(0, index, v))[index]

    return estimate_trace(product, rows.x, **options)


def _name(at: str, trace: str, low_rank: Tensor, errors: Tensor, space: str) -> str:
    if trace == "auto":
        share = float(low_rank.float().mean())
        took = {0.0: "hutchinson", 1.0: "xnystrace"}.get(share, f"xnystrace for {share:.0%}")
        took = took if errors.any() else "exact"
        trace = f"auto: {took}"
    where = "at x + sigma n" if at == "noised" else "at x"
    return f"FLIPD {where}, trace by {trace}, {space}"
