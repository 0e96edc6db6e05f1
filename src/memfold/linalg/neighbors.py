"""Exact nearest neighbours: chunked, and safe for near-duplicates."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.linalg._screens import SPARE, Faiss, Product, Screen, Tree, load_faiss, split
from memfold.types import InputError

Backend = Literal["exact", "faiss"]

_DEFAULT_BUDGET = 2**28
_CACHE = 2**23  # bytes that are worked on at a time where the processor's cache sets the pace
_COLUMNS = 16  # columns whose content tells most rows apart
_TREE_DIM, _TREE_ROWS = 15, 500  # a k-d tree is the faster up to this width, from this many rows


def nearest(
    queries: Float[Tensor, "m d"],
    reference: Float[Tensor, "n d"],
    k: int,
    *,
    exclude: Int[Tensor, " m"] | None = None,
    backend: Backend = "exact",
    memory_budget: int = _DEFAULT_BUDGET,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Find the k nearest rows of a reference, by exact Euclidean distance.

    |x|^2 + |y|^2 - 2 x.y cancels between near-duplicates, so it only selects candidates, in
    float32 at first: its error is at most c = 4 (d + 16) u (|x|^2 + |y|^2), u the unit roundoff,
    and no row is dropped unless its value minus c exceeds the k-th exact distance found, or more
    candidates are taken, in float64. Distances come from differences in float64. In few
    dimensions a k-d tree selects; with `backend="faiss"`, faiss's exhaustive index, under the
    same proof, so that the answer is the same.

    Args:
        queries: points, shape (m, d), float32 or float64.
        reference: rows to search, shape (n, d), same dtype.
        k: number of neighbours, at most n (n - 1 where rows are left out).
        exclude: for each query, the reference row to leave out (its own), or -1 for none.
        backend: "exact", or "faiss" where it is installed; it works on the CPU.
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
    m = len(queries)
    distances = queries.new_empty(m, k, dtype=torch.float64)
    indices = exclude.new_empty(m, k)
    screen = _choose(queries, reference, backend)
    rows = max(1, min(screen.block(memory_budget), memory_budget // (96 * (k + SPARE))))
    for start in range(0, m, rows):
        part = slice(start, start + rows)
        distances[part], indices[part] = _search(
            screen, queries[part], reference, exclude[part], k, memory_budget
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
    mask = torch.empty(len(queries), len(reference), dtype=torch.bool, device=queries.device)
    screen = Product(queries, reference, fine=True)
    rows = screen.block(memory_budget)
    limit = (radius * screen.scale) ** 2
    for start in range(0, len(queries), rows):
        x = queries[start : start + rows]
        for columns, lower, upper in screen.bounds(x, memory_budget):
            sure = upper <= limit
            query, row = torch.nonzero((lower <= limit) & ~sure, as_tuple=True)
            exact = _exact(x[query], reference, row[:, None] + columns.start, memory_budget)
            sure[query, row] = exact[:, 0] <= radius
            mask[start : start + rows, columns] = sure
    return mask


def distinct(
    x: Float[Tensor, "n d"], *, memory_budget: int = _DEFAULT_BUDGET
) -> tuple[Float[Tensor, "p d"], Int[Tensor, " n"], Int[Tensor, " p"]]:
    """Find the distinct rows, -0 counted as 0, with one copy of them and little else in memory.

    Rows are sorted by a hash of a few of their columns, then of all, and rows of equal hash are
    compared in full.

    Args:
        x: rows, shape (n, d), float32 or float64.
        memory_budget: bytes for temporary arrays of width d.

    Returns:
        The distinct rows (p, d), in an order that their content alone decides; for each row of x
        the index of its equal (n,); and how often each occurs (p,).

    >>> import torch
    >>> distinct(torch.tensor([[1.0, 0.0], [2.0, 3.0], [1.0, -0.0]]))[2].sort().values
    tensor([1, 2])
    """
    rows = max(1, memory_budget // (32 * max(1, x.shape[1])))
    code = _codes(x, rows)
    _, inverse, copies = code.unique(return_inverse=True, return_counts=True)
    first = torch.full_like(copies, len(x)).scatter_reduce_(
        0, inverse, torch.arange(len(x), device=x.device), "amin"
    )
    twin = first[inverse]
    again = torch.nonzero(twin != torch.arange(len(x), device=x.device))[:, 0]
    if not all(torch.equal(x[rest], x[twin[rest]]) for rest in again.split(rows)):
        return torch.unique(x + 0.0, dim=0, return_inverse=True, return_counts=True)
    places = x[first]
    places += 0.0  # -0 becomes 0
    return places, inverse, copies


def check_backend(backend: Backend, device: torch.device) -> None:
    """Refuse a way of searching that cannot be had.

    Raises:
        InputError: if the name is unknown, or faiss is asked for and not installed, or on a GPU.
    """
    if backend not in get_args(Backend):
        raise InputError(f"neighbors is {backend!r}: choose one of {get_args(Backend)}")
    if backend == "faiss":
        load_faiss()
        if device.type != "cpu":
            raise InputError(
                f"neighbors is 'faiss' and device is {str(device)!r}: faiss works on the CPU here; "
                "pass neighbors='exact', or device='cpu'"
            )


def _choose(queries: Tensor, reference: Tensor, backend: Backend) -> Screen:
    """Choose the way to find candidates."""
    check_backend(backend, reference.device)
    if backend == "faiss":
        return Faiss(queries, reference)
    few = reference.shape[1] <= _TREE_DIM and min(len(queries), len(reference)) >= _TREE_ROWS
    if few and reference.device.type == "cpu":
        return Tree(queries, reference)
    return Product(queries, reference)


def _search(
    screen: Screen,
    queries: Tensor,
    reference: Tensor,
    exclude: Tensor,
    k: int,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Re-rank ever more candidates, by exact distance, until the lower bounds rule out the rest."""
    n = len(reference)
    distances = queries.new_empty(len(queries), k, dtype=torch.float64)
    indices = exclude.new_empty(len(queries), k)
    pending = torch.arange(len(queries), device=queries.device)
    c = min(n, k + screen.spare + int((exclude >= 0).any()))
    while len(pending):
        rest = []
        for part in pending.split(max(1, memory_budget // (96 * c))):
            bound, candidate = screen.candidates(queries[part], c, memory_budget)
            candidate = candidate.sort().values
            exact = _exact(queries[part], reference, candidate, memory_budget)
            exact[candidate == exclude[part, None]] = torch.inf
            exact, order = exact.sort(stable=True)
            distances[part] = exact[:, :k]
            indices[part] = candidate.gather(1, order[:, :k])
            open_ = (bound <= (exact[:, k - 1] * screen.scale).square()) & (c < n)
            rest.append(part[open_])
        pending, c, screen = torch.cat(rest), min(n, 4 * c), screen.finer()
    return distances, indices


def _exact(queries: Tensor, reference: Tensor, candidate: Tensor, memory_budget: int) -> Tensor:
    """Distances (b, c) of each query to its candidates, from exact differences, in float64."""
    out = queries.new_empty(candidate.shape, dtype=torch.float64)
    d = queries.shape[1]
    pairs = max(1, min(memory_budget, _CACHE) // (16 * max(1, d)))  # float32 and float64
    columns = min(candidate.shape[1], pairs)
    rows = max(1, pairs // columns)
    for start in range(0, len(queries), rows):
        x = queries[start : start + rows, None].to(torch.float64)
        for first in range(0, candidate.shape[1], columns):
            part = slice(start, start + rows), slice(first, first + columns)
            some = candidate[part]
            y = reference.index_select(0, some.flatten()).to(torch.float64)
            out[part] = torch.linalg.vector_norm(y.view(*some.shape, d).sub_(x), dim=2)
    return out


def _finite(x: Tensor) -> bool:
    """Tell whether all is finite, in most cases by the sum alone."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def _codes(x: Tensor, rows: int) -> Tensor:
    """Hash some columns of each row, and all columns of those rows that they do not tell apart."""
    some = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], _COLUMNS), device=x.device).long()
    code = _hash(x[:, some])
    _, inverse, count = code.unique(return_inverse=True, return_counts=True)
    alike = torch.nonzero(count[inverse] > 1)[:, 0]
    for part in alike.split(rows) if len(some) < x.shape[1] else ():
        code[part] += _hash(x[part])
    return code


def _hash(x: Tensor) -> Tensor:
    """Map each row to 64 bits that depend on its content alone."""
    bits = (x + 0.0).view(torch.int32 if x.dtype == torch.float32 else torch.int64).to(torch.int64)
    bits = (bits ^ (bits >> 31)) * -7046029254386353131  # 2^64 / golden ratio, odd
    bits ^= bits >> 32
    generator = torch.Generator().manual_seed(0)  # fixed: a hash, not a sample
    factor = torch.randint(-(2**62), 2**62, (x.shape[1],), generator=generator).to(x.device) * 2 + 1
    code = (bits * factor).sum(1)
    return code ^ (code >> 29)


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
    both = (reference,) if queries is reference else (queries, reference)
    if not all(_finite(part) for t in both for part in split(t)):
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
