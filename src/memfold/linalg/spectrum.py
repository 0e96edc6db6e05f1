"""Spectra of operators that are known by their products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import per_sample


def lanczos(
    product: Callable[[Tensor], Tensor], start: Float[Tensor, "b *d"], n_steps: int
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
    """Run Lanczos on a symmetric operator, with full reorthogonalization, for a batch at once.

    A direction that comes out at rounding size ends that sample's run: what is left of its
    tridiagonal matrix decouples and carries no weight.

    Args:
        product: `v -> S v`, S symmetric, v of shape (b, *d).
        start: starting vectors, shape (b, *d); normalized here.
        n_steps: steps m >= 1; one product each.

    Returns:
        Ritz values (b, m), and the squared first components of their vectors (b, m), which are the
        nodes and the weights of a Gauss quadrature of v^T f(S) v / |v|^2.
    """
    m = min(n_steps, start[0].numel())
    v = start.flatten(1)
    v = v / v.norm(dim=1, keepdim=True)
    basis = [v]
    diagonal, off = v.new_zeros(len(v), m), v.new_zeros(len(v), max(m - 1, 0))
    for j in range(m):
        w = product(basis[j].reshape(start.shape)).flatten(1)
        diagonal[:, j] = (w * basis[j]).sum(1)
        if j + 1 == m:
            break
        q = torch.stack(basis, 1)
        for _ in range(2):
            w = w - (torch.einsum("bkd,bd->bk", q, w).unsqueeze(1) @ q)[:, 0]
        norm = w.norm(dim=1)
        size = diagonal.abs().amax(1) + off.abs().amax(1)
        alive = norm > 100 * torch.finfo(w.dtype).eps * size
        off[:, j] = norm * alive
        if not alive.any():  # every sample's run has ended
            break
        basis.append(w / torch.where(alive, norm, 1).unsqueeze(1) * alive.unsqueeze(1))
    t = torch.diag_embed(diagonal.double())
    t = t + torch.diag_embed(off.double(), 1) + torch.diag_embed(off.double(), -1)
    finite = t.isfinite().all(2).all(1)[:, None]  # eigh raises on NaN, for all of the batch
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None], t, 0))
    values = torch.where(finite, values, torch.nan)
    return values.to(start), (vectors[:, 0] ** 2).to(start)


def quadratic_form(
    product: Callable[[Tensor], Tensor],
    f: Callable[[Tensor], Tensor],
    probe: Float[Tensor, "b *d"],
    n_steps: int,
) -> Float[Tensor, " b"]:
    """Estimate w^T f(S) w by Lanczos quadrature (Ubaru, Chen and Saad 2017, Algorithm 1).

    Its mean over probes with independent entries of mean 0 and variance 1 is tr f(S).

    Args:
        product: `v -> S v`, S symmetric.
        f: acts on eigenvalues.
        probe: the vectors w, shape (b, *d).
        n_steps: Lanczos steps.

    Returns:
        One number a sample, shape (b,).
    """
    nodes, weights = lanczos(product, probe, n_steps)
    return per_sample(probe**2) * (weights * f(nodes)).sum(1)
