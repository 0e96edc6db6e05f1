"""LID from all pairs of neighbours, within the ball that holds them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, settle
from memfold.linalg.neighbors import Backend

_LEAST = 1e-4  # of the radius: closer pairs measure rounding and noise


class TLE(NeighborsLID):
    """Tight Local Estimator (Amsaleg et al. 2019, eq. 14; 2022, arXiv 2209.14475).

    Maximum likelihood as in `MLE`, but each of the k nearest places v of x serves as a centre too,
    to which the others w and their mirror images 2x - w are measured. Distances from v are those
    of the ball that passes through v and w and touches the ball of radius r = r_k about x:

        t(v, w) = r |w - v|^2 / (b + sqrt(b^2 + |w - v|^2 (r^2 - |v - x|^2))), b = (x - v) (w - v),
        LID = -2 k^2 / (sum_{v != w} log(t(v, w) t(v, 2x - w) / r^2) + 2 sum_v log(|v - x| / r)).

    Pairs nearer than 1e-4 r count neither above nor below. Small neighbourhoods suffice: k = 20
    tells about as much as k = 100 in `MLE`, with less bias from the edge of the ball.

    The standard error is a jackknife that leaves out one neighbour at a time, with r kept.
    `dimension_` is the mean over points that lie at no point mass; at these LID is 0, by the rule
    of the base class. A simplex, where all t equal r, gets the dimension of the space.

    Args:
        n_neighbors: number of nearest places k, at least 3; time and memory grow as k^2.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 9))
    >>> round(TLE().fit(x).dimension_)
    1
    """

    _min_neighbors = 3

    def __init__(
        self, n_neighbors: int = 20, *, neighbors: Backend = "exact", device: str = "cpu"
    ) -> None:
        self.n_neighbors = n_neighbors
        self.neighbors = neighbors
        self.device = device

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        lid, stderr = near.distance.new_zeros(2, len(x))
        for part, offset in self._offsets(x, near) if k else ():
            radius = (near.distance[part] / near.distance[part, -1:]).clamp_max(1.0)
            log, used = _log_ratios(offset @ offset.mT, radius)
            total, count = log.sum((1, 2)), used.sum((1, 2))
            lid[part] = self._ratio(total, count)
            if want_stderr:
                less = log.sum(1) + log.sum(2) - log.diagonal(dim1=1, dim2=2)
                fewer = used.sum(1) + used.sum(2) - used.diagonal(dim1=1, dim2=2)
                without = self._ratio(total[:, None] - less, count[:, None] - fewer)
                stderr[part] = (without.var(1, correction=0) * (k - 1)).sqrt()
        stderr = self._tied(lid, stderr, near) if k else stderr
        return settle(lid, stderr, near.point_mass)

    def _ratio(self, total: Float[Tensor, "*b"], count: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Divide, or where all ratios are 1 to rounding answer with the dimension of the space."""
        flat = -total <= count * 1e-9
        return torch.where(flat, float(self.n_features_in_), -count / total.masked_fill(flat, 1.0))


def _log_ratios(
    gram: Float[Tensor, "b k k"], radius: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, "b k k"], Float[Tensor, "b k k"]]:
    """Give log t(v, w) t(v, 2x - w), on the diagonal 2 log |v - x|, and how many terms each has.

    All lengths are in units of r.
    """
    square = radius.square()
    inside = (1 - square)[:, :, None]
    log, used = torch.zeros_like(gram), torch.full_like(gram, 2.0)
    for product in (gram, -gram):
        apart = (square[:, :, None] + square[:, None] - 2 * product).clamp_min(0.0)
        b = square[:, :, None] - product
        root = (b.square() + apart * inside).sqrt()
        # Two forms of one root of a quadratic: each is exact where the other cancels.
        t = torch.where(b > 0, apart / (b + root), (root - b) / inside)
        near = ~(t >= _LEAST)  # not a number: 0 / 0, a pair at one place
        used.masked_fill_(near, 0.0)
        log += t.clamp(_LEAST, 1.0).log().masked_fill(near, 0.0)
    log.masked_fill_(used == 0, 0.0)  # a pair and its mirror image leave together
    log.diagonal(dim1=1, dim2=2).copy_(2 * radius.log())
    used.diagonal(dim1=1, dim2=2).fill_(2.0)
    return log, used
