"""Traces of operators that are known by their products alone, each with its standard error.

Four estimators behind one call. Probes are random signs (Rademacher) where the diagonal is to add
no variance, and uniform in direction where they must not be collinear on few coordinates; they are
keyed by the sample, so that a sample's trace does not depend on the batch it came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.tensors import rademacher_like, sphere_like
from memfold.types import InputError

from .definite import Product, apply, diagnose, looks_symmetric
from .hutchinson import by_signs, hutch_pp, hutchinson, settle
from .nystrom import corrected, xnystrace

METHODS = ("auto", "exact", "hutchinson", "hutch++", "xnystrace")
_FIRST = 4  # probes of a block, at least; from the first one `auto` decides
_LEAST = 3  # probes that XNysTrace leaves out in turn, at least
_ENOUGH = 16  # probes from which their spread is trusted; with fewer, the rank must be exhausted
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

    `auto` draws a few random signs and looks whether the operator is symmetric and positive
    semi-definite. Where it is, these products and those of the look become the sketch of XNysTrace,
    which is exact beyond the rank, and directions are added as its probes until its standard error,
    or that of their plain mean, is below `tol`; where it is not, or a negative direction shows
    later, Hutchinson's estimator takes `n_probes` signs.

    Args:
        product: `(v, rows) -> A v` for the operators numbered `rows`; v has shape (r, *d). The
            transpose A^T v serves as well.
        x: the points, which give shape, dtype and the key of the probes, shape (b, *d).
        method: "auto", "exact", "hutchinson", "hutch++" or "xnystrace".
        n_probes: products a sample, where the method does not choose. Hutchinson's estimator takes
            one more where all signs agree, and as many again for its error where that is chance.
        max_probes: the most probes that `auto` takes, beside the 4 products of the look.
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
    elif method == "hutchinson":
        value, stderr, count = by_signs(product, x, rows, n_probes, seed)
        return Trace(value, stderr, count, torch.zeros_like(rows, dtype=torch.bool))
    else:
        probes, spent = sphere_like(x, n_probes, seed).flatten(2), n_probes
        if method == "hutch++":
            value, stderr = hutch_pp(product, probes, x, rows)
        else:
            products = apply(product, probes, x, rows)
            value, stderr = xnystrace(probes, products)
            _refuse_indefinite(value, products)
    low = torch.full(rows.shape, method == "xnystrace", device=x.device)
    return Trace(value, stderr, torch.full_like(rows, spent), low)


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
    if d <= max(_SMALL, n_probes):
        return trace(product, x, method="exact", seed=seed)
    count = max(n_probes, _FIRST)
    signs = rademacher_like(x, count, seed).flatten(2)
    products = apply(product, signs, x, rows)
    look = diagnose(product, signs[:, :_FIRST], products[:, :_FIRST], x, rows)
    value, stderr = hutchinson(signs, products)
    spent, low = torch.full_like(rows, count) + _FIRST * look.spent, look.passed.clone()
    room = min(max_probes, d) - count
    if room < _LEAST:
        low = torch.zeros_like(low)
    some = low.nonzero()[:, 0]
    if len(some):
        sketch = [
            torch.cat(pair, 1)[some] for pair in ((signs, look.basis), (products, look.images))
        ]
        value[some], stderr[some], more, low[some] = _grow(
            product, x[some], some, sketch, room=room, most=max_probes, tol=tol, seed=seed + 2
        )
        spent[some] += more
    late = (look.passed & ~low & ~value.isfinite()).nonzero()[:, 0]
    if len(late):  # fresh probes: what the others showed is no matter of chance any more
        value[late], stderr[late], more = by_signs(product, x[late], late, count, seed + 1)
        spent[late] += more
    rest = (~look.passed | (room < _LEAST)).nonzero()[:, 0]
    if len(rest):
        value[rest], stderr[rest], more = settle(
            product, signs[rest], products[rest], x[rest], rest, seed
        )
        spent[rest] += more
    return Trace(value, stderr, spent, low)


def _grow(
    product: Product,
    x: Float[Tensor, "r *d"],
    rows: Int[Tensor, " r"],
    sketch: list[Float[Tensor, "r s d"]],
    *,
    room: int,
    most: int,
    tol: float,
    seed: int,
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"], Int[Tensor, " r"], Bool[Tensor, " r"]]:
    """Add probes to a sketch until one of two standard errors is below `tol`.

    Args:
        product: as in `trace`.
        x: the points, shape (r, *d).
        rows: their numbers, shape (r,).
        sketch: vectors of any kind and A times them, each of shape (r, s, d).
        room: how many probes may be added, at least 3.
        most: probes from which on the exact trace is taken if there are no more dimensions.
        tol: the standard error wanted.
        seed: keys the probes.

    Returns:
        Value and standard error, NaN where A has negative eigenvalues or is not symmetric; the
        number of products; whether the value is XNysTrace's; each of shape (r,).
    """
    d, kept, n = x[0].numel(), sketch[0].shape[1], 0
    value = torch.full_like(sketch[0][:, 0, 0], torch.nan)
    stderr, spent = value.clone(), torch.zeros_like(rows)
    low = torch.zeros_like(rows, dtype=torch.bool)
    probes, products = sketch
    active = torch.arange(len(rows), device=x.device)
    while len(active):
        step = max(_FIRST, 2 ** ((kept + n).bit_length() - 3))  # a quarter of a doubling
        if n and kept + n + step >= d <= most:  # as many products as dimensions give the trace
            value[active], stderr[active] = _exact(product, x[active], rows[active]), 0
            spent[active] += d
            break
        w = sphere_like(x[active], min(step, room - n), seed + n).flatten(2)
        probes = torch.cat([probes, w], 1)
        products = torch.cat([products, apply(product, w, x[active], rows[active])], 1)
        n += w.shape[1]
        spent[active] = n
        last = room - n < 1
        value[active], stderr[active], low[active], on = _choose(
            probes, products, tol, sketch=kept, last=last
        )
        active, probes, products = active[on], probes[on], products[on]
    return value, stderr, spent, low


def _choose(
    probes: Float[Tensor, "b k d"],
    products: Float[Tensor, "b k d"],
    tol: float,
    *,
    sketch: int,
    last: bool,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Bool[Tensor, " b"], Bool[Tensor, " b"]]:
    """Take XNysTrace, or the mean of the same products where that alone is good enough.

    Hutchinson's spread has to meet the tolerance with one standard error of the spread itself to
    spare, since looking again and again would else stop at a spread that is small by chance.

    Args:
        probes: the sketch and the probes, shape (b, k, d).
        products: A w, shape (b, k, d).
        tol: the standard error wanted.
        sketch: how many of them are the sketch.
        last: whether no more products are to be had, so that the smaller error decides.

    Returns:
        Value and standard error, NaN where A has negative eigenvalues or is not symmetric; whether
        the value is XNysTrace's; and whether more products are needed; each of shape (b,).
    """
    value, error, rest = corrected(probes, products, sketch=sketch)
    probes, products = probes[:, sketch:], products[:, sketch:]
    count = probes.shape[1]
    fine, enough = value.isfinite() & looks_symmetric(probes, products), count >= _ENOUGH
    on = fine & ((error > tol) if enough else (torch.maximum(error, rest) > tol / 10))
    plain = torch.zeros_like(on)
    if enough:
        mean, spread = hutchinson(probes, products)
        plain = on & (spread * (1 + (2 * count) ** -0.5) <= tol)
        if last:
            plain |= on & (spread < error)
        value, error = torch.where(plain, mean, value), torch.where(plain, spread, error)
    value = torch.where(fine, value, torch.nan)
    return value, error, fine & ~plain, on & ~plain & (not last)


def _exact(product: Product, x: Tensor, rows: Tensor) -> Tensor:
    total = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
    for i in range(x[0].numel()):
        e = torch.zeros_like(x).flatten(1)
        e[:, i] = 1
        total += product(e.reshape(x.shape), rows).flatten(1)[:, i]
    return total
