"""Exact nearest neighbours: chunked, and safe for near-duplicates."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from memfold.types import InputError

_DEFAULT_BUDGET = 2**28
_CACHE = 2**23  # bytes that are worked on at a time where the processor's cache sets the pace
_SPARE = 4  # candidates beyond k, so that the first round mostly suffices
_TREE_DIM, _TREE_ROWS = 15, 500  # a k-d tree is the faster up to this width, from this many rows


def nearest(
    queries: Float[Tensor, "m d"],
    reference: Float[Tensor, "n d"],
    k: int,
    *,
    exclude: Int[Tensor, " m"] | None = None,
    memory_budget: int = _DEFAULT_BUDGET,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Find the k nearest rows of a reference, by exact Euclidean distance.

    |x|^2 + |y|^2 - 2 x.y cancels between near-duplicates, so it only selects candidates, in
    float32 at first: its error is at most c = 4 (d + 16) u (|x|^2 + |y|^2), u the unit roundoff,
    and no row is dropped unless its value minus c exceeds the k-th exact distance found, or more
    candidates are taken, in float64. Distances come from differences in float64. In few
    dimensions a k-d tree selects.

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
    small = reference.shape[1] <= _TREE_DIM and n >= _TREE_ROWS and m >= _TREE_ROWS
    screen = (_Tree if small and not reference.is_cuda else _Screen)(queries, reference)
    rows = max(1, min(screen.block(memory_budget), memory_budget // (96 * (k + _SPARE))))
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
    screen = _Screen(queries, reference, fine=True)
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

    Rows are sorted by a hash of their content, and rows of equal hash are compared in full.

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
    code = torch.cat([_hash(part) for part in x.split(rows)])
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


class _Screen:
    """Lower and upper bounds of squared distances by one matrix product, after centring.

    Everything is scaled by a power of 2 so that no coordinate exceeds 1: squares then neither
    overflow nor, to any effect, underflow.
    """

    spare = _SPARE

    def __init__(self, queries: Tensor, reference: Tensor, fine: bool = False) -> None:
        exact = torch.get_float32_matmul_precision() == "highest"  # no TF32, no bfloat16
        self.dtype = torch.float32 if exact and not fine else torch.float64
        self.queries, self.reference = queries, reference
        parts = [part.sum(0, dtype=torch.float64) for part in _parts(reference)]
        self.center = torch.stack(parts).sum(0) / len(reference)
        ends = [float(end) for t in (queries, reference) if len(t) for end in t.aminmax()]
        far = 2 * max(map(abs, ends))
        self.scale = 2.0 ** min(1000, max(-1000, -math.ceil(math.log2(far)))) if far else 1.0
        self.center = (self.center * self.scale).to(
            torch.promote_types(reference.dtype, self.dtype)
        )
        d = reference.shape[1]
        self.error = 4 * (d + 16) * torch.finfo(self.dtype).eps / 2
        self._fine: _Screen | None = None
        self.tiny = 4 * (d + 16) * torch.finfo(self.dtype).tiny

    def finer(self) -> _Screen:
        """Screen in float64 what float32 could not tell apart."""
        if self.dtype == torch.float64:
            return self
        if self._fine is None:
            self._fine = _Screen(self.queries, self.reference, fine=True)
        return self._fine

    def block(self, memory_budget: int) -> int:
        """Side of the square tiles, of queries times reference rows, that fit into the budget."""
        width = 24 * self.reference.shape[1]
        return max(1, int((math.sqrt(width**2 + 96 * memory_budget) - width) / 48))

    def candidates(self, x: Tensor, c: int, memory_budget: int) -> tuple[Tensor, Tensor]:
        """Choose c rows for each query; bound the scaled squared distance of all the others."""
        x = self._place(x)
        value = x.new_empty(len(x), 0)
        index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
        for columns, y in self._tiles(memory_budget):
            new, at = _smallest(self._lower(x, y), min(c, len(y)))
            value, index = torch.cat([value, new], 1), torch.cat([index, at + columns.start], 1)
            if value.shape[1] > c:
                value, at = value.topk(c, largest=False)
                index = index.gather(1, at)
        square = (1 - self.error) * x.square().sum(1) - self.tiny
        return value.amax(1).to(torch.float64) + square.to(torch.float64), index

    def bounds(self, x: Tensor, memory_budget: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Bound all scaled squared distances from below and above, a tile at a time."""
        x = self._place(x)
        square = x.square().sum(1, keepdim=True)
        for columns, y in self._tiles(memory_budget):
            lower = self._lower(x, y) + (1 - self.error) * square - self.tiny
            size = square + y.square().sum(1)
            yield columns, lower, lower + 2 * (self.error * size + self.tiny)

    def _place(self, x: Tensor) -> Tensor:
        return (x.to(self.center.dtype) * self.scale - self.center).to(self.dtype)

    def _tiles(self, memory_budget: int) -> Iterator[tuple[slice, Tensor]]:
        rows = self.block(memory_budget)
        for start in range(0, len(self.reference), rows):
            columns = slice(start, min(start + rows, len(self.reference)))
            yield columns, self._place(self.reference[columns])

    def _lower(self, x: Tensor, y: Tensor) -> Tensor:
        """Lower bound of |x - y|^2 without what x alone adds to it."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.addmm((1 - self.error) * y.square().sum(1), x, y.T, alpha=-2)


class _Tree:
    """Candidates from a k-d tree, whose distances are differences in float64."""

    scale, spare = 1.0, 2

    def __init__(self, queries: Tensor, reference: Tensor) -> None:
        self.tree = cKDTree(reference.to(torch.float64).numpy(), balanced_tree=False)

    def finer(self) -> _Tree:
        """Return itself: nothing is finer."""
        return self

    def block(self, memory_budget: int) -> int:
        """Return as many queries as one likes: they need no memory beyond their candidates."""
        return memory_budget

    def candidates(self, x: Tensor, c: int, memory_budget: int) -> tuple[Tensor, Tensor]:
        """Choose c rows for each query; bound the squared distance of all the others."""
        distance, index = self.tree.query(x.to(torch.float64).numpy(), c)
        shape = len(x), c
        last = torch.from_numpy(np.reshape(distance, shape)[:, -1])
        return last.square() * (1 - 1e-12), torch.from_numpy(np.reshape(index, shape))


def _smallest(value: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Find the c smallest of each row: they lie in the c groups of columns with smallest minima."""
    n = value.shape[1]
    size = math.isqrt(n // c)
    if size < 3:
        return value.topk(c, largest=False, sorted=False)
    groups = n // size
    group = value[:, : groups * size].unflatten(1, (size, groups)).amin(1)
    group = group.topk(c, largest=False, sorted=False).indices
    member = group[:, None] + groups * torch.arange(size, device=value.device)[:, None]
    left = torch.arange(groups * size, n, device=value.device).expand(len(value), -1)
    columns = torch.cat([member.flatten(1), left], 1)
    found, at = value.gather(1, columns).topk(c, largest=False, sorted=False)
    return found, columns.gather(1, at)


def _search(
    screen: _Screen | _Tree,
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
    c = min(n, k + screen.spare)
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
    room = min(memory_budget, _CACHE) // (16 * max(1, queries.shape[1]))  # float32 and float64
    pairs = max(1, room)
    columns = min(candidate.shape[1], pairs)
    rows = max(1, pairs // columns)
    for start in range(0, len(queries), rows):
        x = queries[start : start + rows, None].to(torch.float64)
        for first in range(0, candidate.shape[1], columns):
            part = slice(start, start + rows), slice(first, first + columns)
            y = reference[candidate[part]].to(torch.float64)
            out[part] = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    return out


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """Split the rows, so that a temporary copy of a part needs a few megabytes."""
    return x.split(max(1, 2**20 // max(1, x.shape[1])))


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
    if not all(part.isfinite().all() for t in (queries, reference) for part in _parts(t)):
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
