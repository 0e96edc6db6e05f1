"""LID from the angles between neighbours."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaln
from sklearn.utils import check_random_state
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, centered, grouped_jackknife, settle
from memfold.linalg.neighbors import Backend
from memfold.types import InputError

_HIGHEST = 20_000  # dimension at which the table of expected values ends
_BYTES = 2**24


class ESS(NeighborsLID):
    """Expected simplex skewness (Johnsson, Soneson and Fontes 2015).

    With v_1 ... v_k the k nearest places about their mean, and simplices of one vertex at that
    mean and `order` others,

        version "a":  S = sum |volume| / sum prod |v_i|,      order m = 1: |sin| of the angle,
        version "b":  S = sum |v_i . v_j| / sum |v_i| |v_j|,  order 1 only: |cos| of the angle,

    and LID is the dimension, m or more, in which a uniform ball has that expectation, interpolated
    between integers: for "a" (gamma(n/2) / gamma((n+1)/2))^m gamma(n/2) / gamma((n-m)/2), for "b"
    gamma(n/2) / (sqrt(pi) gamma((n+1)/2)). All k (k - 1) / 2 pairs are taken at order 1. At higher
    orders, at most `n_simplices` different simplices are drawn by `random_state`, the same ones at
    all points; time is k^2 d + n_simplices m^3 a point. Angles need fewer places than counts of
    directions do: k may be below the dimension.

    The standard error is a grouped jackknife, as in `LPCA`; in a round neighbourhood, where the
    first-order term of S vanishes, it is up to twice too large. `dimension_` is the mean over
    points that lie at no point mass; at these LID is 0, by the rule of the base class.

    Args:
        n_neighbors: number of nearest places k, at least 3 and above `order` + 1.
        version: which angle function.
        order: number of vectors m in a simplex, at least 1.
        n_simplices: most simplices a point, at `order` above 1.
        random_state: seed of the choice of simplices; an int, a `numpy.random.RandomState` or None.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 3)) @ np.eye(3, 9)
    >>> round(ESS().fit(x).dimension_)
    3
    """

    n_neighbors: int

    _min_neighbors = 3

    def __init__(
        self,
        n_neighbors: int = 50,
        *,
        version: Literal["a", "b"] = "a",
        order: int = 1,
        n_simplices: int = 5000,
        random_state: int | np.random.RandomState | None = None,
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.version = version
        self.order = order
        self.n_simplices = n_simplices
        self.random_state = random_state
        self.neighbors = neighbors
        self.device = device

    def _check_parameters(self) -> None:
        if self.version not in ("a", "b"):
            raise InputError(f"version is {self.version!r}: choose 'a' or 'b'")
        if self.order < 1 or (self.version == "b" and self.order != 1):
            raise InputError(f"order is {self.order}: pass 1 or more; version 'b' has order 1 only")
        if self.order > 1 and self.n_neighbors < self.order + 2:
            raise InputError(
                f"n_neighbors is {self.n_neighbors}: order {self.order} needs {self.order + 2}"
            )
        if self.n_simplices < 1:
            raise InputError(f"n_simplices is {self.n_simplices}: pass a positive number")

    def _prepare(self) -> None:
        self._seed = 0
        if self.order > 1:
            self._seed = check_random_state(self.random_state).randint(2**31 - 1)

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        lid, stderr = near.distance.new_zeros(2, len(x))
        for part, gram in self._grams(x, near, want_stderr) if k else ():
            lid[part] = self._dimensions(gram)
            if want_stderr:
                stderr[part] = grouped_jackknife(k, partial(self._kept, gram))
        return settle(lid, stderr, near.point_mass)

    def _kept(self, gram: Tensor, keep: Tensor) -> Tensor:
        return self._dimensions(gram[:, keep][:, :, keep])

    def _dimensions(self, gram: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
        gram = centered(gram)
        skewness = self._pairs(gram) if self.order == 1 else self._simplices(gram)
        sign = 1 if self.version == "a" else -1
        table = sign * _expected(self.version, self.order).to(gram.device)
        skewness = (sign * skewness).clamp(table[0], table[-1])
        upper = torch.searchsorted(table, skewness).clamp(1, len(table) - 1)
        below, above = table[upper - 1], table[upper]
        return self.order + upper - 1 + (skewness - below) / (above - below)

    def _pairs(self, gram: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
        square = gram.diagonal(dim1=1, dim2=2).clamp_min(0.0)
        length = square.sqrt()
        weight = length.sum(1).square() - square.sum(1)
        if self.version == "b":
            return (gram.abs().sum((1, 2)) - square.sum(1)) / weight
        area = square[:, :, None] * square[:, None] - gram.square()
        area = area.clamp_min_(0.0).sqrt_()
        return (area.sum((1, 2)) - area.diagonal(dim1=1, dim2=2).sum(1)) / weight

    def _simplices(self, gram: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
        chosen = self._choose(gram.shape[1]).to(gram.device)
        volume, weight = gram.new_zeros(2, len(gram))
        size = self.order + 1
        for some in chosen.split(max(1, _BYTES // (16 * size**2 * len(gram)))):
            part = gram[:, some[:, :, None], some[:, None]]
            volume += torch.linalg.det(part).clamp_min(0.0).sqrt().sum(1)
            weight += part.diagonal(dim1=2, dim2=3).clamp_min(0.0).sqrt().prod(2).sum(1)
        return volume / weight

    def _choose(self, k: int) -> Int[Tensor, "s m"]:
        """Choose simplices: all, or as many different ones as asked for, drawn at random."""
        size = self.order + 1
        if math.comb(k, size) <= self.n_simplices:
            return torch.tensor(list(itertools.combinations(range(k), size)))
        rng = np.random.RandomState(self._seed)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < self.n_simplices:
            keys = rng.random_sample((self.n_simplices, k)).argpartition(size - 1)[:, :size]
            drawn.update(dict.fromkeys(map(tuple, np.sort(keys, 1).tolist())))
        return torch.tensor(list(drawn)[: self.n_simplices])


@lru_cache(maxsize=8)
def _expected(version: str, order: int) -> Float[Tensor, " n"]:
    """Tabulate the expected skewness in dimensions order, order + 1, ... (Johnsson et al.)."""
    n = np.arange(order, _HIGHEST, dtype=float)
    ratio = gammaln(n / 2) - gammaln((n + 1) / 2)
    if version == "b":
        return torch.from_numpy(np.exp(ratio) / math.sqrt(math.pi))
    with np.errstate(divide="ignore"):
        log = order * ratio + gammaln(n / 2) - gammaln((n - order) / 2)
    return torch.from_numpy(np.exp(log))
