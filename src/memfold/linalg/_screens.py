"""Ways to choose candidates for nearest neighbours, each with a bound for all that it left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from memfold.types import InputError

SPARE = 4  # candidates beyond k, so that the first round mostly suffices
_CACHE = 2**19  # numbers that are worked on at a time: some megabytes, a processor's cache
_COLUMNS = 2**13  # reference rows at a time, so that enough queries meet them at once


@runtime_checkable
class Screen(Protocol):
    """What a search asks of a screen: candidates, and a bound of all other rows."""

    scale: float
    spare: int

    def finer(self) -> Screen:
        """Return a screen that tells closer rows apart, or itself."""

    def block(self, memory_budget: int) -> int:
        """Return how many queries fit into the budget at a time."""

    def candidates(self, x: Tensor, c: int, memory_budget: int) -> tuple[Tensor, Tensor]:
        """Choose c rows for each query; bound the scaled squared distance of all the others."""


class Product:
    """Lower and upper bounds of squared distances by one matrix product, after centring.

    Everything is scaled by a power of 2 so that no coordinate exceeds 1: squares then neither
    overflow nor, to any effect, underflow.
    """

    spare = SPARE
    _fine: Product | None

    def __init__(self, queries: Tensor, reference: Tensor, fine: bool = False) -> None:
        exact = torch.get_float32_matmul_precision() == "highest"  # no TF32, no bfloat16
        self.queries, self.reference = queries, reference
        both = (reference,) if queries is reference else (queries, reference)
        ends = [float(e) for t in both for part in split(t) if len(part) for e in part.aminmax()]
        far = 2 * max(map(abs, ends))
        self.scale = 2.0 ** min(1000, max(-1000, -math.ceil(math.log2(far)))) if far else 1.0
        total = reference.new_zeros(reference.shape[1], dtype=torch.float64)
        for part in split(reference):
            total += part.sum(0, dtype=torch.float64)  # one at a time: each makes a copy in float64
        self._middle = total / len(reference) * self.scale
        self._round(torch.float32 if exact and not fine else torch.float64)

    def _round(self, dtype: torch.dtype) -> None:
        """Set the dtype of the product, and with it the error of its bounds."""
        self.dtype, self._fine = dtype, None
        self.center = self._middle.to(torch.promote_types(self.reference.dtype, dtype))
        d = self.reference.shape[1]
        self.error = 4 * (d + 16) * torch.finfo(dtype).eps / 2
        self.tiny = 4 * (d + 16) * torch.finfo(dtype).tiny

    def finer(self) -> Product:
        """Screen in float64 what float32 could not tell apart."""
        if self.dtype == torch.float64:
            return self
        if self._fine is None:
            self._fine = fine = copy(self)
            fine._round(torch.float64)
        return self._fine

    def block(self, memory_budget: int) -> int:
        """Side of the square tiles, of queries times reference rows, that fit into the budget."""
        width = 24 * self.reference.shape[1]
        return max(1, int((math.sqrt(width**2 + 96 * memory_budget) - width) / 48))

    def candidates(self, x: Tensor, c: int, memory_budget: int) -> tuple[Tensor, Tensor]:
        """Choose c rows for each query; bound the scaled squared distance of all the others."""
        x = self.place(x)
        value = x.new_empty(len(x), 0)
        index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
        for columns, y in self._tiles(self._width(memory_budget)):
            new, at = self._best(x, y, min(c, len(y)))
            value, index = torch.cat([value, new], 1), torch.cat([index, at + columns.start], 1)
            if value.shape[1] > c:
                value, at = value.topk(c, largest=False)
                index = index.gather(1, at)
        square = (1 - self.error) * x.square().sum(1) - self.tiny
        return value.amax(1).to(torch.float64) + square.to(torch.float64), index

    def bounds(self, x: Tensor, memory_budget: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Bound all scaled squared distances from below and above, a tile at a time."""
        x = self.place(x)
        square = x.square().sum(1, keepdim=True)
        for columns, y in self._tiles(self.block(memory_budget)):
            size = y.square().sum(1)
            lower = self._lower(x, y, size) + (1 - self.error) * square - self.tiny
            yield columns, lower, lower + 2 * (self.error * (square + size) + self.tiny)

    def place(self, x: Tensor) -> Tensor:
        """Centre, scale and round."""
        scaled = x.to(self.center.dtype) * self.scale
        return scaled.sub_(self.center).to(self.dtype)

    def _best(self, x: Tensor, y: Tensor, c: int) -> tuple[Tensor, Tensor]:
        """Find the c smallest lower bounds of each query, some queries at a time."""
        size = y.square().sum(1)
        rows = len(x) if x.is_cuda else max(1, _CACHE // len(y))
        found = [smallest(self._lower(part, y, size), c) for part in x.split(rows)]
        return torch.cat([value for value, _ in found]), torch.cat([at for _, at in found])

    def _width(self, memory_budget: int) -> int:
        """Return how many reference rows to take at a time."""
        if self.reference.is_cuda:
            return self.block(memory_budget)
        return max(1, min(_COLUMNS, memory_budget // (32 * (self.reference.shape[1] + 1))))

    def _tiles(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Place the reference, part by part, in the same memory: each part ends the one before.

        Fresh memory for each would be kept by malloc, part upon part, in a process that also
        makes small blocks.
        """
        n, d = self.reference.shape
        placed = self.center.new_empty(min(rows, n), d)
        rounded = placed if placed.dtype == self.dtype else placed.to(self.dtype)
        for start in range(0, n, rows):
            columns = slice(start, min(start + rows, n))
            some, out = (t[: columns.stop - start] for t in (placed, rounded))
            some.copy_(self.reference[columns]).mul_(self.scale).sub_(self.center)
            if rounded is not placed:
                out.copy_(some)
            yield columns, out

    def _lower(self, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
        """Lower bound of |x - y|^2 without what x alone adds to it."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.addmm((1 - self.error) * size, x, y.T, alpha=-2)


class Tree:
    """Candidates from a k-d tree, whose distances are differences in float64."""

    scale, spare = 1.0, 1  # one beyond k shows a tie

    def __init__(self, queries: Tensor, reference: Tensor) -> None:
        self.tree = cKDTree(reference.to(torch.float64).numpy(), balanced_tree=False)

    def finer(self) -> Tree:
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


class Faiss:
    """Candidates from faiss's exhaustive index, in float32 on centred and scaled rows.

    A row that it leaves out lies, by its own arithmetic, no nearer than the last one returned: the
    bound subtracts the error of that arithmetic at the largest norm of the reference.
    """

    spare = SPARE

    def __init__(self, queries: Tensor, reference: Tensor) -> None:
        faiss = load_faiss()
        self._product = Product(queries, reference)
        self.scale = self._product.scale
        self.index = faiss.IndexFlatL2(reference.shape[1])
        self.largest = 0.0
        for part in split(reference):
            y = self._product.place(part).to(torch.float32)
            self.largest = max(self.largest, float(y.square().sum(1).max()))
            self.index.add(y.numpy())

    def finer(self) -> Product:
        """Screen in float64 what float32 could not tell apart."""
        return self._product.finer()

    def block(self, memory_budget: int) -> int:
        """Return how many queries fit into the budget at a time."""
        return self._product.block(memory_budget)

    def candidates(self, x: Tensor, c: int, memory_budget: int) -> tuple[Tensor, Tensor]:
        """Choose c rows for each query; bound the scaled squared distance of all the others."""
        x = self._product.place(x).to(torch.float32)
        value, index = map(torch.from_numpy, self.index.search(x.numpy(), c))
        size = x.square().sum(1).to(torch.float64) + self.largest
        d = self.index.d
        error = 4 * (d + 16) * (torch.finfo(torch.float32).eps / 2 * size)
        return value[:, -1].to(torch.float64) - error - self._product.tiny, index


def load_faiss() -> Any:
    """Import faiss, or say how to install it.

    Raises:
        InputError: if faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "neighbors is 'faiss', which is not installed: pip install 'memfold[faiss]', "
            "or pass neighbors='exact'"
        ) from error
    return faiss


def smallest(value: Tensor, c: int) -> tuple[Tensor, Tensor]:
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


def split(x: Tensor) -> tuple[Tensor, ...]:
    """Split the rows, so that a temporary copy of a part needs a few megabytes."""
    return x.split(max(1, 2**20 // max(1, x.shape[1])))
