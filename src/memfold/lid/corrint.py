"""LID as the slope of the correlation integral."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.special import polygamma, psi
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, settle
from memfold.linalg.neighbors import Backend, within
from memfold.types import InputError

_BYTES = 2**26


class CorrInt(NeighborsLID):
    """Correlation integral (Grassberger and Procaccia 1983), local and global.

    C(r), the share of pairs of places closer than r, grows as r^d; so does C_x(r), the share of
    places closer than r to x, whose mean over x it is (eq. 1.1). At x the two radii are those of
    the j = `inner` and the k nearest places. Where the density is flat, (r_j / r_k)^d follows
    Beta(j, k - j), so -d log(r_j / r_k) has mean A = psi(k) - psi(j) (the log of C's ratio, k / j,
    without its bias) and variance V = psi'(j) - psi'(k), and

        LID = A / (log(r_k / r_j) (1 + V / A^2)),    standard error = LID sqrt(V) / A,

    where 1 + V / A^2 takes away the bias of an inverse to first order. For all distances up to
    r_k, not two, take `MLE`.

    `dimension_` is the slope of log C itself between r_1 and r_2, the medians over the reference
    of the distances to the j-th and the k-th nearest place, with all pairs counted exactly. LID
    is 0 at point masses, by the rule of the base class.

    Args:
        n_neighbors: number of nearest places k within the larger radius, at least 2.
        inner: number of nearest places j within the smaller one; None takes a quarter of k.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).uniform(size=(500, 2)) @ np.ones((2, 9))
    >>> round(CorrInt().fit(x).dimension_)
    1
    """

    n_neighbors: int

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        inner: int | None = None,
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.inner = inner
        self.neighbors = neighbors
        self.device = device

    def _check_parameters(self) -> None:
        if self.inner is not None and not 1 <= self.inner < self.n_neighbors:
            raise InputError(
                f"inner is {self.inner}: it must lie between 1 and n_neighbors - 1, "
                f"here {self.n_neighbors - 1}"
            )

    def _inner(self, k: int) -> int:
        return min(k - 1, max(1, k // 4 if self.inner is None else self.inner))

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        j = self._inner(k)
        if own:
            self._ends = [float(np.median(near.distance[:, i].cpu())) for i in (j - 1, -1)]
        mean, variance = float(psi(k) - psi(j)), float(polygamma(1, j) - polygamma(1, k))
        width = (near.distance[:, -1] / near.distance[:, j - 1]).log()
        flat = width <= 1e-9
        lid = mean / (width.masked_fill(flat, 1.0) * (1 + variance / mean**2))
        lid = lid.masked_fill(flat, float(self.n_features_in_))
        stderr = self._tied(lid, lid * math.sqrt(variance) / mean, near)
        return settle(lid, stderr, near.point_mass)

    def _global(self, lid: Float[Tensor, " n"]) -> float:
        if not (lid > 0).any():
            return 0.0
        r1, r2 = self._ends
        if r2 <= r1 * (1 + 1e-9):
            return float(self.n_features_in_)
        return math.log(self._pairs(r2) / self._pairs(r1)) / math.log(r2 / r1)

    def _pairs(self, radius: float) -> int:
        """Count the ordered pairs of places at most `radius` apart."""
        n = len(self._places)
        parts = self._places.split(max(1, _BYTES // n))
        return sum(int(within(part, self._places, radius).sum()) for part in parts) - n
