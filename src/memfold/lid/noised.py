"""What the model-side estimators share: rows (sample, noise), chunks, and the mean over noises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, select
from memfold.linalg.jacobian import Jacobian, graph_bytes
from memfold.tensors import check_tensor, normal_like
from memfold.types import Estimate, InputError

from .resolution import check_resolution

MEMORY_BUDGET = 2**30  # bytes that the graphs of one chunk may keep


@dataclass(frozen=True)
class Rows:
    """A chunk of rows, each one noise at one sample.

    Attributes:
        x: the point that the network sees, shape (r, *d).
        clean: the sample itself, shape (r, *d).
        noise: (x - clean) / sigma, with what rounding left of it, shape (r, *d).
        f: `x -> D(x, sigma, cond)` for points that belong to these rows.
    """

    x: Float[Tensor, "r *d"]
    clean: Float[Tensor, "r *d"]
    noise: Float[Tensor, "r *d"]
    f: Callable[[Tensor], Tensor]


def check_points(denoiser: Denoiser, x: Tensor, sigma: float) -> None:
    """Refuse points that are no numbers, or do not fit the model, and a sigma out of range.

    Args:
        denoiser: the model.
        x: the points.
        sigma: one noise standard deviation.

    Raises:
        InputError: with the value and the remedy.
    """
    check_tensor(x)
    if not isinstance(sigma, Real):
        raise InputError(f"sigma must be one number, not {type(sigma).__name__}; loop over sigmas")
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; pass a batch of points, (b, *d), b >= 1")
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}; pass floating-point points (see encode)")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise InputError(f"x[{int(bad.nonzero()[0])}] holds NaN or infinity; remove that point")
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x has dtype {x.dtype}, which rounds small noises away; pass x.float()")
    denoiser.check(x[:1], sigma)
    check_resolution(x, float(sigma), denoiser.dtype)


def noised(
    denoiser: Denoiser,
    x: Float[Tensor, "b *d"],
    sigma: float,
    cond: Any,
    *,
    n_noises: int,
    seed: int,
    batch_size: int,
) -> Iterator[Rows]:
    """Walk over all (sample, noise) rows in chunks, sample by sample.

    Args:
        denoiser: the model.
        x: the samples, shape (b, *d).
        sigma: noise standard deviation.
        cond: condition.
        n_noises: noises a sample; 0 for the sample itself, without noise.
        seed: keys the noises by sample.
        batch_size: rows in a chunk.

    Yields:
        Chunks of rows, in the order (sample 0, noise 0), (sample 0, noise 1), ...
    """
    count = max(n_noises, 1)
    index = torch.arange(len(x)).repeat_interleave(count)
    drawn, base, held = x[:0], 0, 0  # noises of the samples base to held - 1, each drawn once
    for start in range(0, len(index), max(1, batch_size)):
        chunk = index[start : start + max(1, batch_size)]
        first, last = int(chunk[0]), int(chunk[-1]) + 1
        clean, own = x[chunk.to(x.device)], select(cond, chunk, len(x))
        noise = torch.zeros_like(clean)
        if n_noises:
            if held < last:
                fresh = normal_like(x[held:last], n_noises, seed).flatten(0, 1)
                drawn, base, held = torch.cat([drawn[(first - base) * count :], fresh]), first, last
            noise = drawn[start - base * count :][: len(chunk)]

        def f(y: Tensor, own: Any = own) -> Tensor:
            return denoiser(y, sigma, own)

        y = clean + sigma * noise
        yield Rows(y, clean, (y - clean) / sigma, f)


def jacobian_at(denoiser: Denoiser, rows: Rows, sigma: float) -> Jacobian:
    """Return J = dD/dx at a chunk of rows; how its products are made is remembered by model."""
    network = denoiser if denoiser.module is None else denoiser.module
    return Jacobian(rows.f, rows.x, sigma, network=network, precision=denoiser.dtype)


def rows_that_fit(
    denoiser: Denoiser, x: Tensor, sigma: float, cond: Any, memory_budget: int, vectors: int = 0
) -> int:
    """Count the rows whose retained graphs fit into the budget, by measuring one.

    Args:
        denoiser: the model.
        x: the samples.
        sigma: noise standard deviation.
        cond: condition.
        memory_budget: bytes.
        vectors: probes that a row keeps, with their products and double-precision copies.

    Returns:
        Rows a chunk, at least 1.
    """
    own = select(cond, torch.zeros(1, dtype=torch.long), len(x))
    bytes_per_row = graph_bytes(lambda y: denoiser(y, sigma, own), x[:1])
    bytes_per_row += 48 * min(vectors, x[0].numel()) * x[0].numel()
    return max(1, memory_budget // max(bytes_per_row, 1))


def mean_over_noises(
    each: Float[Tensor, " r"], b: int, scale: float, method: str, within: Tensor | None = None
) -> Estimate:
    """Average rows to samples; the standard error is that over noises.

    Args:
        each: one number a row.
        b: number of samples.
        scale: sigma.
        method: what it is.
        within: standard error of each row, where one noise stands alone.

    Returns:
        The estimate.

    Raises:
        InputError: the model gave NaN or infinity at a sample.
    """
    table = each.reshape(b, -1)
    bad = ~table.isfinite().all(1)
    if bad.any():
        raise InputError(
            f"the model returned NaN or infinity at x[{int(bad.nonzero()[0])}], sigma = {scale:.4g}"
            "; compute in float32, or remove that point"
        )
    n = table.shape[1]
    if n == 1:
        stderr = torch.full_like(each, float("nan")) if within is None else within
    else:
        stderr = table.std(1) / n**0.5
    return Estimate(table.mean(1), stderr, float(scale), method)
