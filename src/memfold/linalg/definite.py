"""Whether operators that are known by their products alone are symmetric and semi-definite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]  # (v: (r, *d), rows: (r,)) -> (r, *d)

_SYMMETRIC = 0.02  # |A - A^T| / |A + A^T|, Frobenius, above which A is not symmetric
_ROUNDING = 1e-6  # of |W| |A W|, within which both parts are 0, as where signs miss all tangents
_NOTHING = 1e-5  # |A W| / |W| below which signs see rounding alone: A is 0, or they miss its range
_NEGATIVE = 0.02  # -smallest / largest Ritz value above which A is not positive semi-definite
_DEPENDENT = 1e-4  # squared singular value below which a basis vector adds nothing


@dataclass(frozen=True)
class Look:
    """What a look at the operators of a batch found.

    Attributes:
        passed: True where the low-rank route is open, shape (b,).
        spent: True where k more products were taken, shape (b,).
        basis: an orthonormal basis of the span of A w, 0 where none was taken, shape (b, k, d).
        images: A times that basis, shape (b, k, d).
    """

    passed: Bool[Tensor, " b"]
    spent: Bool[Tensor, " b"]
    basis: Float[Tensor, "b k d"]
    images: Float[Tensor, "b k d"]


def apply(product: Product, probes: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """Apply the operators to k probes each, one probe of every sample at a time."""
    shape = (len(rows), *x.shape[1:])
    each = [product(w.reshape(shape), rows).flatten(1) for w in probes.unbind(1)]
    return torch.stack(each, 1)


def diagnose(
    product: Product,
    probes: Float[Tensor, "b k d"],
    products: Float[Tensor, "b k d"],
    x: Float[Tensor, "b *d"],
    rows: Tensor,
) -> Look:
    """Look whether A is symmetric and positive semi-definite, from k products and k more.

    For random signs E (w_i^T A w_j)^2 = |A|_F^2 off the diagonal, so that the antisymmetric part of
    the k x k matrix W A W^T, against the symmetric one, estimates that of A. Where A passes, the
    smallest Ritz value on the span of W and A W is compared with the largest: two block Lanczos
    steps, which show a bulk of small negative eigenvalues beside a few large positive ones. Where
    signs miss all tangents, rounding is left, which tells nothing: the low-rank route stays open.

    Args:
        product: as in `trace`.
        probes: random signs w, shape (b, k, d).
        products: A w, shape (b, k, d).
        x: the points.
        rows: their numbers, shape (b,).

    Returns:
        What was found, and the k products that it took where A looked symmetric.
    """
    missed = miss(probes, products)
    symmetric = looks_symmetric(probes, products) | missed
    passed = symmetric.clone()
    basis, images = torch.zeros_like(products), torch.zeros_like(products)
    if symmetric.any():
        some = symmetric.nonzero()[:, 0]
        q = torch.linalg.qr(products[some].mT).Q.mT
        image = apply(product, q, x[some], rows[some])
        unit = probes.shape[2] ** -0.5  # of a probe's own length
        values = _ritz(
            torch.cat([unit * probes[some], q], 1), torch.cat([unit * products[some], image], 1)
        )
        passed[some] = (values[:, 0] >= -_NEGATIVE * values[:, -1].abs()) | missed[some]
        basis[some], images[some] = q, image
    return Look(passed, symmetric, basis, images)


def miss(probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"]) -> Bool[Tensor, " b"]:
    """Tell whether probes see nothing of A but rounding, for A of order 1 as a Jacobian is."""
    return products.flatten(1).norm(dim=1) <= _NOTHING * probes.flatten(1).norm(dim=1)


def looks_symmetric(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"]
) -> Bool[Tensor, " b"]:
    """Compare the antisymmetric part of W A W^T with the symmetric one, off the diagonal."""
    m = (probes @ products.mT).double()
    off = ~torch.eye(m.shape[1], dtype=torch.bool, device=m.device)
    anti, sym = ((m - m.mT) * off).flatten(1).norm(dim=1), ((m + m.mT) * off).flatten(1).norm(dim=1)
    size = probes.flatten(1).norm(dim=1) * products.flatten(1).norm(dim=1)
    return anti <= _SYMMETRIC * sym + _ROUNDING * size


def _ritz(basis: Float[Tensor, "b k d"], image: Float[Tensor, "b k d"]) -> Float[Tensor, "b k"]:
    """Ritz values of symmetric A on the span of `basis`, given its image; dependent ones are 0."""
    b, ab = basis.double(), image.double()
    l, v = torch.linalg.eigh(b @ b.mT)
    kept = l > _DEPENDENT * l[:, -1:]
    p = v * torch.where(kept, l.clamp_min(_DEPENDENT).rsqrt(), 0)[:, None, :]
    m = p.mT @ (b @ ab.mT) @ p
    return torch.linalg.eigvalsh((m + m.mT) / 2)
