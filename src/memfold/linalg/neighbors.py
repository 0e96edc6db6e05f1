"""Exact nearest neighbours: chunked, and safe for near-duplicates."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.types import InputError

_ROUNDING = 2.0**-53  # unit roundoff of float64
_DEFAULT_BUDGET = 2**28


def nearest(
    queries: Float[Tensor, "m d"],
    reference: Float[Tensor, "n d"],
    k: int,
    *,
    exclude: Int[Tensor, " m"] | None = None,
    memory_budget: int = _DEFAULT_BUDGET,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Find the k nearest rows of a reference, by exact Euclidean distance.

    |x|^2 + |y|^2 - 2 x.y cancels between near-duplicates, so it only selects candidates: in
    float64 its error is at most c = 8 (d + 8) 2^-53 (|x|^2 + |y|^2), and no row is dropped unless
    its value minus c exceeds the k-th exact distance found. Distances come from differences.

    Args:
        queries: points, shape (m, d), float32 or float64.
        reference: rows to search, shape (n, d), same dtype.
        k: number of neighbours, at most n (n - 1 where rows are left out).
        exclude: for each query, the reference row to leave out (its own), or -1 for none.
        memory_budget: bytes for temporary arrays; at least one row is always worked on.

    Returns:
        Distances (m, k), float64, ascending, and row indices (m, k). Equal distances stand in the
        order of their indices. Neither depends on the budget nor on the other queries.

    Raises:
        InputError: for shapes, dtypes, values or a k that cannot be served.

    >>> import torch
    >>> nearest(torch.tensor([[0.1]]), torch.tensor([[0.0], [1.0], [0.0]]), 2)[1].tolist()
    [[0, 2]]
    """
    exclude = _check(queries, reference, k, exclude, memory_budget)
    m, n = len(queries), len(reference)
    distances = queries.new_empty(m, k, dtype=torch.float64)
    indices = exclude.new_empty(m, k)
    rows = max(1, memory_budget // (48 * n))
    center = reference.mean(0, dtype=torch.float64)
    for start in range(0, m, rows):
        part = slice(start, start + rows)
        lower, _ = _bounds(queries[part], reference, center, memory_budget)
        own = exclude[part]
        lower[torch.arange(len(own), device=own.device)[own >= 0], own[own >= 0]] = torch.inf
        distances[part], indices[part] = _search(
            queries[part], reference, lower, own, k, memory_budget
        )
    return distances, indices


def within(
    queries: Float[Tensor, "m d"],
    reference: Float[Tensor, "n d"],
    radius: float,
    *,
    memory_budget: int = _DEFAULT_BUDGET,
) -> Bool[Tensor, "m n"]:
    """Tell which reference rows lie within a radius of each query, by exact distance.

    Args:
        queries: points, shape (m, d).
        reference: rows, shape (n, d).
        radius: largest Euclidean distance that counts, itself included.
        memory_budget: bytes for temporary arrays; the answer itself holds m n bytes, so that the
            caller passes as many queries at a time as it has room for.

    Returns:
        A mask of shape (m, n).

    Raises:
        InputError: for shapes, dtypes or values that cannot be served.
    """
    _check(queries, reference, 1, None, memory_budget)
    mask = queries.new_empty(len(queries), len(reference), dtype=torch.bool)
    rows = max(1, memory_budget // (48 * len(reference)))
    center = reference.mean(0, dtype=torch.float64)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        lower, upper = _bounds(queries[part], reference, center, memory_budget)
        sure = upper <= radius**2
        query, row = torch.nonzero((lower <= radius**2) & ~sure, as_tuple=True)
        exact = _exact(queries[part][query], reference, row[:, None], memory_budget)
        sure[query, row] = exact[:, 0] <= radius
        mask[part] = sure
    return mask


def _search(
    queries: Tensor, reference: Tensor, lower: Tensor, exclude: Tensor, k: int, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Re-rank ever more candidates, by exact distance, until the lower bounds rule out the rest."""
    n = len(reference)
    distances = lower.new_empty(len(queries), k)
    indices = exclude.new_empty(len(queries), k)
    pending = torch.arange(len(queries), device=lower.device)
    c = min(n, k + 8)
    while len(pending):
        bound, candidate = lower[pending].topk(c, largest=False)
        candidate = candidate.sort().values
        exact = _exact(queries[pending], reference, candidate, memory_budget)
        exact[candidate == exclude[pending, None]] = torch.inf
        exact, order = exact.sort(stable=True)
        distances[pending] = exact[:, :k]
        indices[pending] = candidate.gather(1, order[:, :k])
        open_ = (bound.amax(1) <= exact[:, k - 1].square()) & (c < n)
        pending, c = pending[open_], min(n, 4 * c)
    return distances, indices


def _bounds(
    queries: Tensor, reference: Tensor, center: Tensor, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Bound all squared distances from below and above by the expanded square, (b, n) each."""
    x = queries.to(torch.float64) - center
    x2 = x.square().sum(1, keepdim=True)
    lower = x.new_empty(len(x), len(reference))
    upper = torch.empty_like(lower)
    rows = max(1, memory_budget // (32 * (x.shape[1] + len(x))))
    for start in range(0, len(reference), rows):
        y = reference[start : start + rows].to(torch.float64) - center
        size = x2 + y.square().sum(1)
        value = size - 2 * x @ y.T
        error = 8 * (x.shape[1] + 8) * _ROUNDING * size
        lower[:, start : start + rows] = value - error
        upper[:, start : start + rows] = value + error
    return lower, upper


def _exact(queries: Tensor, reference: Tensor, candidate: Tensor, memory_budget: int) -> Tensor:
    """Distances (b, c) of each query to its candidates, from exact differences, in float64."""
    out = queries.new_empty(candidate.shape, dtype=torch.float64)
    pairs = max(1, memory_budget // (16 * queries.shape[1]))  # a row in float32 and in float64
    columns = min(candidate.shape[1], pairs)
    rows = max(1, pairs // columns)
    for start in range(0, len(queries), rows):
        x = queries[start : start + rows, None].to(torch.float64)
        for first in range(0, candidate.shape[1], columns):
            part = slice(start, start + rows), slice(first, first + columns)
            y = reference[candidate[part]].to(torch.float64)
            out[part] = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    return out


def _check(
    queries: Tensor, reference: Tensor, k: int, exclude: Tensor | None, memory_budget: int
) -> Tensor:
    """Refuse what cannot be searched; return `exclude`, filled with -1 when there is none."""
    if queries.shape[1] != reference.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} features but the reference has "
            f"{reference.shape[1]}: flatten or embed both in the same way"
        )
    if queries.dtype != reference.dtype or queries.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"queries are {queries.dtype} and the reference is {reference.dtype}: "
            "convert both to float32 or both to float64"
        )
    if not (queries.isfinite().all() and reference.isfinite().all()):
        raise InputError("queries or reference hold NaN or infinity: remove those rows first")
    if memory_budget < 1:
        raise InputError(f"memory_budget is {memory_budget} bytes: pass a positive number")
    n = len(reference)
    available = n if exclude is None or bool((exclude < 0).all()) else n - 1
    if not 1 <= k <= available:
        raise InputError(f"k is {k} but must lie in 1..{available}, the rows that can be found")
    if exclude is None:
        return torch.full((len(queries),), -1, device=queries.device)
    if len(exclude) and not (int(exclude.min()) >= -1 and int(exclude.max()) < n):
        raise InputError(f"exclude must hold row indices below {n}, or -1 for none")
    return exclude.long()
