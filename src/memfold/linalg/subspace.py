"""Leading eigenvalues of operators known by their products, by blocks of random directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.tensors import normal_like

_CLOSED = 0.05  # |S Q - Q T|, Frobenius, below which no eigenvalue is left half found


@dataclass(frozen=True)
class Leading:
    """The largest eigenvalues of each operator of a batch.

    Attributes:
        values: Ritz values, DESCENDING, NaN where a row needed fewer than others, shape (b, m).
        complete: whether all eigenvalues above the bound are among them, shape (b,).
        products: products that each row took, shape (b,).
    """

    values: Float[Tensor, "b m"]
    complete: Bool[Tensor, " b"]
    products: Int[Tensor, " b"]


def leading_eigenvalues(
    product: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    *,
    above: float,
    block: int = 16,
    max_size: int = 512,
    n_iterations: int = 3,
    seed: int,
) -> Leading:
    """Find the eigenvalues above a bound by subspace iteration that grows block by block.

    A block of Gaussian directions is multiplied by S and made orthonormal, with all that was found
    before taken out (Halko, Martinsson and Tropp 2011, Algorithm 4.4, with the growth of their
    section 4.4); then one more product a direction gives Q^T S Q and its eigenvalues, the Ritz
    values. A row is complete once the smallest Ritz value of its last block alone is below the
    bound, and either the directions are closed under S (|S Q - Q T| is small: an operator of low
    rank), or that block added none above the bound. Ritz values lie below the eigenvalues that
    they stand for, so that in a spectrum without a gap a few at the bound can be missed.

    Rows are independent: a row stops on its own, and the others change nothing in its result.

    Args:
        product: `v -> S v`, S symmetric, v of shape (b, *d).
        x: the points, which give shape, dtype and the key of the directions, shape (b, *d).
        above: the bound.
        block: directions in a block.
        max_size: the most directions.
        n_iterations: products with a block before its Ritz values are taken, at most; one is
            enough where the block is then closed under S, or all above the bound. Later ones are
            with S + a I, -a the smallest Ritz value: a negative bulk is damped, and 0 stays small.
        seed: keys the directions.

    Returns:
        Ritz values, whether they are complete, and the number of products.
    """
    b, d = len(x), x[0].numel()
    most, start = min(max_size, d), x.flatten(1)
    q, w = start.new_zeros(b, 0, d), start.new_zeros(b, 0, d)
    values = start.new_full((b, most), torch.nan)
    done = torch.zeros(b, dtype=torch.bool, device=x.device)
    spent = torch.zeros(b, dtype=torch.long, device=x.device)
    before = torch.full_like(spent, -1)
    while q.shape[1] < most and not done.all():
        size = min(block, most - q.shape[1])
        first = _orthonormal(normal_like(x, size, seed + q.shape[1]).flatten(2), q)
        y = _orthonormal(_products(product, first, x.shape), q)
        image = _products(product, y, x.shape)
        spent += ~done * 2 * size
        for _ in range(n_iterations - 1):
            ritz = _ritz(y, image)[0]
            rest = _ritz(torch.cat([q, y], 1), torch.cat([w, image], 1))[1]
            open_ = ~done & (rest > _CLOSED) & (ritz[:, -1] <= above)
            if not open_.any():
                break
            shift = -ritz.amin(1).clamp_max(0)[:, None, None]
            better = _orthonormal(image + shift * y, q)
            y = torch.where(open_[:, None, None], better, y)
            image = torch.where(open_[:, None, None], _products(product, y, x.shape), image)
            spent += open_ * size
        q, w = torch.cat([q, y], 1), torch.cat([w, image], 1)
        ritz, rest = _ritz(q, w)
        last = _ritz(y, image)[0]
        values[~done, : q.shape[1]] = ritz[~done]
        count = (ritz > above).sum(1)
        settled = (last[:, -1] <= above) & ((rest <= _CLOSED) | (count == before))
        done, before = done | settled | last[:, -1].isnan(), count
    return Leading(values[:, : q.shape[1]], done | (q.shape[1] == d), spent)


def _products(
    product: Callable[[Tensor], Tensor], v: Float[Tensor, "b k d"], shape: torch.Size
) -> Float[Tensor, "b k d"]:
    return torch.stack([product(u.reshape(shape)).flatten(1) for u in v.unbind(1)], 1)


def _orthonormal(v: Float[Tensor, "b k d"], q: Float[Tensor, "b m d"]) -> Float[Tensor, "b k d"]:
    """Make rows orthonormal to each other and to the rows of q; twice is enough."""
    for _ in range(2):
        v = v - (v @ q.mT) @ q
        v = torch.linalg.qr(v.nan_to_num().mT).Q.mT
    return v


def _ritz(
    q: Float[Tensor, "b m d"], w: Float[Tensor, "b m d"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
    """Eigenvalues of T = Q^T S Q, descending, and |S Q - Q T|; NaN where S gave no numbers."""
    t = q.double() @ w.double().mT
    bad = ~t.flatten(1).isfinite().all(1)
    t = t.masked_fill(bad[:, None, None], 0)
    t = (t + t.mT) / 2
    values = torch.linalg.eigvalsh(t).flip(1).masked_fill(bad[:, None], torch.nan)
    rest = w.double() - t @ q.double()
    return values.to(w), rest.flatten(1).norm(dim=1).to(w)
