"""Hutchinson's estimator of a trace, by random signs, and Hutch++."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memfold.tensors import rademacher_like, sphere_like

from .definite import Product, apply, miss

_AGREE = 30  # roundings of the sum's size within which random signs agree, and 1e-8 at least
_DIAGONAL = 1e-3  # relative size of A w off the diagonal's below which A is diagonal


def hutchinson(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Average w^T A w (Hutchinson 1989).

    With random signs the diagonal of A adds no variance: Var = |A + A^T|_F^2 / 2 off the diagonal.
    With directions of length sqrt(d) it is (2 |S|_F^2 - 2 tr^2 / d) d / (d + 2), S = (A + A^T) / 2.

    Args:
        probes: w, shape (b, k, d).
        products: A w, or A^T w, shape (b, k, d).

    Returns:
        Value and standard error, each of shape (b,).
    """
    each = (probes * products).sum(2)
    return each.mean(1), each.std(1) / each.shape[1] ** 0.5


def by_signs(
    product: Product, x: Float[Tensor, "b *d"], rows: Int[Tensor, " b"], n: int, seed: int
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Take Hutchinson's estimator with random signs, and see to it that agreement is no chance.

    Args:
        product: as in `trace`.
        x: the points, shape (b, *d).
        rows: their numbers, shape (b,).
        n: probes, at least 2.
        seed: keys the probes.

    Returns:
        Value, standard error and the number of products, each of shape (b,).
    """
    probes = rademacher_like(x, n, seed).flatten(2)
    products = apply(product, probes, x, rows)
    value, stderr, more = settle(product, probes, products, x, rows, seed)
    return value, stderr, more + n


def settle(
    product: Product,
    signs: Float[Tensor, "b k d"],
    products: Float[Tensor, "b k d"],
    x: Float[Tensor, "b *d"],
    rows: Int[Tensor, " b"],
    seed: int,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Return Hutchinson's estimate from random signs, with an error where they agree by chance.

    All k values of w^T A w agree if A is diagonal, and the estimate is then exact. They also do
    with probability 2^(1 - k) if A is u u^T with u on two coordinates, as between two images that
    differ in two pixels: 0 or 2 |u|^2, with a standard error of 0. One product with a random
    direction tells the two apart. Where A is not diagonal, the spread of k random directions is the
    error, at least as large on average; the value stays, since changing it where signs agree
    would bias it.

    Args:
        product: as in `trace`.
        signs: random signs w, shape (b, k, d).
        products: A w, shape (b, k, d).
        x: the points, shape (b, *d).
        rows: their numbers, shape (b,).
        seed: keys the directions.

    Returns:
        Value, standard error and the number of further products, each of shape (b,).
    """
    value, stderr = hutchinson(signs, products)
    spent = torch.zeros_like(rows)
    size = (signs * products).abs().sum(2).amax(1)
    same = max(_AGREE * torch.finfo(size.dtype).eps, 1e-8)
    doubtful = ((stderr <= same * size) | miss(signs, products)).nonzero()[:, 0]
    if not len(doubtful):
        return value, stderr, spent
    k, some = signs.shape[1], x[doubtful]
    w = sphere_like(some, k, seed + 1).flatten(2)
    first = apply(product, w[:, :1], some, rows[doubtful])
    diagonal = (signs[doubtful] * products[doubtful]).mean(1)
    off = (first[:, 0] - diagonal * w[:, 0]).norm(dim=1)
    chance = off > _DIAGONAL * first[:, 0].norm(dim=1)
    spent[doubtful] = torch.where(chance, k, 1)
    if chance.any():
        at, w = doubtful[chance], w[chance]
        rest = apply(product, w[:, 1:], x[at], rows[at])
        stderr[at] = hutchinson(w, torch.cat([first[chance], rest], 1))[1]
    return value, stderr, spent


def hutch_pp(
    product: Product, probes: Float[Tensor, "b k d"], x: Float[Tensor, "b *d"], rows: Tensor
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Project the range out, then average over what is left (Meyer et al. 2021, Algorithm 1).

    A third of the products finds Q, a third gives tr(Q^T A Q) exactly, a third is Hutchinson's
    estimator on the complement. Near the rank little is left there, and the error is far from
    normal: the standard error has the right size, but 2 of them cover some 85 % in place of 95.

    Args:
        product: as in `trace`.
        probes: directions of length sqrt(d) (`sphere_like`), shape (b, k, d): random signs would
            agree by chance on few coordinates.
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
