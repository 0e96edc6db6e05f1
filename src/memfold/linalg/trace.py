"""Traces of operators that are known by their products alone, each with its standard error.

Four estimators behind one call. Probes are random signs (Rademacher), keyed by the sample, so that
a sample's trace does not depend on the batch it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.tensors import rademacher_like
from memfold.types import InputError

from .definite import Product, apply, diagnose
from .nystrom import xnystrace

METHODS = ("auto", "exact", "hutchinson", "hutch++", "xnystrace")
_FIRST = 4  # probes of the first block, from which `auto` decides
_ENOUGH = 16  # probes from which their spread is trusted; with fewer, only XNysTrace at tol / 10
_SMALL = 32  # dimensions up to which `auto` is exact


@dataclass(frozen=True)
class Trace:
    """A trace for each operator of a batch.

    Attributes:
        value: the estimate, shape (b,).
        stderr: its standard error over probes, shape (b,); 0 where it is exact.
        products: how many products each one took, shape (b,).
        low_rank: whether the low-rank route was taken, shape (b,).
    """

    value: Float[Tensor, " b"]
    stderr: Float[Tensor, " b"]
    products: Int[Tensor, " b"]
    low_rank: Bool[Tensor, " b"]


def trace(
    product: Product,
    x: Float[Tensor, "b *d"],
    *,
    method: str = "auto",
    n_probes: int = 4,
    max_probes: int = 128,
    tol: float = 0.5,
    seed: int,
) -> Trace:
    """Estimate the trace of one operator for each point of a batch.

    `auto` draws a few probes and looks whether the operator is symmetric and positive
    semi-definite. Where it is, it adds probes until the standard error of XNysTrace, which is exact
    beyond the rank, or that of Hutchinson's estimator from the same products is below `tol`; where
    it is not, or a negative direction shows later, Hutchinson's estimator takes `n_probes`.

    Args:
        product: `(v, rows) -> A v` for the operators numbered `rows`; v has shape (r, *d). The
            transpose A^T v serves as well.
        x: the points, which give shape, dtype and the key of the probes, shape (b, *d).
        method: "auto", "exact", "hutchinson", "hutch++" or "xnystrace".
        n_probes: products a sample, where the method does not choose.
        max_probes: the most that `auto` takes.
        tol: standard error at which `auto` stops.
        seed: keys the probes.

    Returns:
        Values, standard errors and the number of products, each of shape (b,).

    Raises:
        InputError: an unknown method, too few probes for a standard error, or "xnystrace" where an
            operator is not positive semi-definite.
    """
    if method not in METHODS:
        raise InputError(f"trace method {method!r} is unknown; choose from {', '.join(METHODS)}")
    least = {"hutch++": 6, "hutchinson": 2, "xnystrace": 3}.get(method, 1)
    if n_probes < least:
        raise InputError(f"n_probes = {n_probes} gives {method} no standard error; take {least}")
    if method == "auto":
        return _auto(product, x, n_probes, max_probes, tol, seed)
    rows = torch.arange(len(x), device=x.device)
    d = x[0].numel()
    if method == "exact" or (method == "xnystrace" and n_probes >= d):
        value, spent = _exact(product, x, rows), d
        stderr = torch.zeros_like(value)
    else:
        probes = rademacher_like(x, n_probes, seed).flatten(2)
        if method == "hutch++":
            value, stderr = hutch_pp(product, probes, x, rows)
        else:
            products = apply(product, probes, x, rows)
            estimator = hutchinson if method == "hutchinson" else xnystrace
            value, stderr = estimator(probes, products)
            _refuse_indefinite(value, products)
        spent = n_probes
    low = torch.full(rows.shape, method == "xnystrace", device=x.device)
    return Trace(value, stderr, torch.full_like(rows, spent), low)


def hutchinson(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Average w^T A w (Hutchinson 1989).

    With random signs the diagonal of A adds no variance: Var = |A + A^T|_F^2 / 2 off the diagonal.

    Args:
        probes: random signs w, shape (b, k, d).
        products: A w, or A^T w, shape (b, k, d).

    Returns:
        Value and standard error, each of shape (b,).
    """
    each = (probes * products).sum(2)
    return each.mean(1), each.std(1) / each.shape[1] ** 0.5


def hutch_pp(
    product: Product, probes: Float[Tensor, "b k d"], x: Float[Tensor, "b *d"], rows: Tensor
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Project the range out, then average over what is left (Meyer et al. 2021, Algorithm 1).

    A third of the products finds Q, a third gives tr(Q^T A Q) exactly, a third is Hutchinson's
    estimator on the complement. Near the rank little is left there, and the error is far from
    normal: the standard error has the right size, but 2 of them cover some 85 % in place of 95.

    Args:
        product: as in `trace`.
        probes: random signs, shape (b, k, d).
        x: the points.
        rows: their numbers, shape (b,).

    Returns:
        Value and standard error, each of shape (b,).
    """
    third = probes.shape[1] // 3
    sketch = apply(product, probes[:, :third], x, rows)
    q = torch.linalg.qr(sketch.mT).Q.mT
    inside = (q * apply(product, q, x, rows)).sum((1, 2))
    rest = probes[:, third : probes.shape[1] - third]
    g = rest - (rest @ q.mT) @ q
    outside, stderr = hutchinson(g, apply(product, g, x, rows))
    return inside + outside, stderr


def _refuse_indefinite(value: Float[Tensor, " b"], products: Float[Tensor, "b k d"]) -> None:
    bad = ~value.isfinite() & products.isfinite().all(2).all(1)
    if bad.any():
        raise InputError(
            f"operator {int(bad.nonzero()[0])} has negative eigenvalues, which xnystrace cannot "
            "take; choose hutchinson, hutch++ or auto"
        )


def _auto(
    product: Product, x: Tensor, n_probes: int, max_probes: int, tol: float, seed: int
) -> Trace:
    rows, d = torch.arange(len(x), device=x.device), x[0].numel()
    count = max(n_probes, _FIRST)
    if d <= max(_SMALL, n_probes):
        return trace(product, x, method="exact", seed=seed)
    probes = rademacher_like(x, count, seed).flatten(2)
    products = apply(product, probes, x, rows)
    low, looked = diagnose(product, probes[:, :_FIRST], products[:, :_FIRST], x, rows)
    value, stderr = hutchinson(probes, products)
    spent = torch.full_like(rows, count)
    active, limit = low.nonzero()[:, 0], min(max_probes, d)
    probes, products = probes[active], products[active]
    while len(active):
        count = products.shape[1]
        spent[active] = count
        value[active], stderr[active], low[active], on = _choose(
            probes, products, tol, last=count >= limit
        )
        if not on.any():
            break
        active, probes, products = active[on], probes[on], products[on]
        step = max(_FIRST, 2 ** (count.bit_length() - 3))  # a quarter of a doubling
        if count + step >= d <= max_probes:  # as many products as dimensions give the trace itself
            value[active], stderr[active] = _exact(product, x[active], active), 0
            spent[active] += d
            break
        seed += 1
        more = rademacher_like(x[active], min(step, limit - count), seed).flatten(2)
        probes = torch.cat([probes, more], 1)
        products = torch.cat([products, apply(product, more, x[active], rows[active])], 1)
    spent += _FIRST * looked
    late = (looked & ~low & ~value.isfinite()).nonzero()[:, 0]
    if len(late):  # fresh probes: what the others showed is no matter of chance any more
        probes = rademacher_like(x[late], max(n_probes, _FIRST), seed + 1).flatten(2)
        products = apply(product, probes, x[late], late)
        value[late], stderr[late] = hutchinson(probes, products)
        spent[late] += probes.shape[1]
    return Trace(value, stderr, spent, low)


def _choose(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"], tol: float, *, last: bool
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Bool[Tensor, " b"], Bool[Tensor, " b"]]:
    """Take XNysTrace, or the mean of the same products where that alone is good enough.

    Hutchinson's spread has to meet the tolerance with one standard error of the spread itself to
    spare, since looking again and again would else stop at a spread that is small by chance.

    Args:
        probes: random signs w, shape (b, k, d).
        products: A w, shape (b, k, d).
        tol: the standard error wanted.
        last: whether no more products are to be had, so that the smaller error decides.

    Returns:
        Value and standard error, NaN where A has negative eigenvalues; whether the value is
        XNysTrace's; and whether more products are needed; each of shape (b,).
    """
    count = probes.shape[1]
    value, error = xnystrace(probes, products)
    fine, enough = value.isfinite(), count >= _ENOUGH
    on = fine & (error > (tol if enough else tol / 10))
    plain = torch.zeros_like(on)
    if enough:
        mean, spread = hutchinson(probes, products)
        plain = on & (spread * (1 + (2 * count) ** -0.5) <= tol)
        if last:
            plain |= on & (spread < error)
        value, error = torch.where(plain, mean, value), torch.where(plain, spread, error)
    return value, error, fine & ~plain, on & ~plain & (not last)


def _exact(product: Product, x: Tensor, rows: Tensor) -> Tensor:
    total = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
    for i in range(x[0].numel()):
        e = torch.zeros_like(x).flatten(1)
        e[:, i] = 1
        total += product(e.reshape(x.shape), rows).flatten(1)[:, i]
    return total
