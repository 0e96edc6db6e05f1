"""XNysTrace: the trace of a positive semi-definite operator, exact beyond its rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SHIFT = 1e-11  # least relative shift: what follows divides by it, in double precision


def xnystrace(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"], *, sketch: int = 0
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Estimate the trace of a positive semi-definite A (Epperly, Tropp and Webber 2024, sec. 2.3).

    For each probe i, the Nystroem approximation of all others, A_(i) = Y H^-1 Y^T without i, has
    its trace corrected by w_i^T (A - A_(i)) w_i; the mean over i is exact as soon as the probes
    outnumber the rank. With Z = H^-1 Y and g = diag(H^-1), each is
    tr(Z^T Y) - |Z_i|^2 / g_i + 1 / g_i. A shift A + s I of rounding size keeps H invertible; where
    it does not, A has negative eigenvalues and the result is NaN.

    These share their probes, so that their spread understates the error of the mean (up to three
    times near the rank). The standard error is the jackknife instead, over leaving one probe out
    of the whole estimator: conservative by the inequality of Efron and Stein (1981).

    The probes must be in general position, so that a jackknife of 0 says that the rank is
    exhausted. Random signs are not: on two coordinates two of them are collinear with probability
    1/2, the others then explain each left out, and the jackknife is 0 at half of the trace.

    Args:
        probes: w as rows, shape (b, k, d): uniform in direction and of length sqrt(d) (see
            `sphere_like`), or normal; the first `sketch` are any vectors.
        products: A w, shape (b, k, d).
        sketch: how many serve the approximation alone. They are not left out, neither for the
            correction nor for the jackknife, and may depend on A; at least 3 must remain.

    Returns:
        Value and standard error, each of shape (b,).
    """
    return corrected(probes, products, sketch=sketch)[:2]


def corrected(
    probes: Float[Tensor, "b k d"], products: Float[Tensor, "b k d"], *, sketch: int = 0
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return XNysTrace, and what it is still corrected by: value, error, largest correction.

    The last is over all estimators that leave out two probes: 0 once the rank is exhausted with two
    to spare. The jackknife is a spread of few numbers, and may be small by chance.
    """
    w, y = probes.double(), products.double()
    d, eps = w.shape[2], max(torch.finfo(products.dtype).eps, _SHIFT)
    shift = eps * y.flatten(1).norm(dim=1) / w.shape[1] ** 0.5 + torch.finfo(y.dtype).tiny
    for _ in range(3):
        shifted = y + shift[:, None, None] * w
        gram = w @ shifted.mT
        factor, failed = torch.linalg.cholesky_ex((gram + gram.mT) / 2)
        if not failed.any():
            break
        shift = torch.where(failed > 0, shift * 30, shift)
    factor = torch.where(failed[:, None, None] > 0, torch.nan, factor)
    inverse = torch.cholesky_inverse(factor)
    z, g = inverse @ shifted, inverse.diagonal(dim1=1, dim2=2)
    whole = (z * shifted).sum((1, 2)) - shift * d
    q = z @ z.mT
    value = whole + ((1 - q.diagonal(dim1=1, dim2=2)) / g)[:, sketch:].mean(1)
    p, q = inverse[:, sketch:, sketch:], q[:, sketch:, sketch:]
    error, rest = _jackknife(whole, p, q)
    return value.to(products), error.to(products), rest.to(products)


def _jackknife(
    whole: Float[Tensor, " b"], p: Float[Tensor, "b k k"], q: Float[Tensor, "b k k"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Jackknife standard error of XNysTrace, from P = H^-1 and Q = P Y Y^T P alone.

    Without probe i, P becomes P - P_i P_i^T / P_ii; diag P, diag Q and the trace follow. Both hold
    the rows and columns of the probes that are left out in turn.
    """
    k = p.shape[1]
    pd, qd = p.diagonal(dim1=1, dim2=2), q.diagonal(dim1=1, dim2=2)
    ratio = p / pd[:, :, None]
    g = pd[:, None, :] - ratio * p
    n = qd[:, None, :] - 2 * ratio * q + ratio**2 * qd[:, :, None]
    off = ~torch.eye(k, dtype=torch.bool, device=p.device)
    each = torch.where(off, (1 - n) / torch.where(off, g, 1), 0)
    without = whole[:, None] - qd / pd + each.sum(2) / (k - 1)
    return (without.var(1, correction=0) * (k - 1)).sqrt(), each.abs().flatten(1).amax(1)
