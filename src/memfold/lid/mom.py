"""LID from the mean distance to the nearest neighbours."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, settle
from memfold.linalg.neighbors import Backend


class MOM(NeighborsLID):
    """Method-of-moments LID (Amsaleg et al. 2018, section 4.2; first moment).

    With r_1 <= ... <= r_k the distances to the k nearest places, the r_j / r_k, j < k, follow the
    law P(r_j / r_k < t) = t^d where the density is flat in the ball, with mean d / (d + 1). So
    with m the mean over j <= k,

        LID = m / (1 - m),    standard error = (LID + 1) sqrt(LID / ((LID + 2) (k - 1))),

    the latter by the delta method. Taking r_k itself into the mean, as published, and inverting a
    mean make LID high by some (d + 1 + d (d + 1) / (d + 2)) / k on flat data, which a density
    that falls inside the ball more than undoes in many dimensions. Less efficient than `MLE`, but
    the smallest distances, where noise sits, weigh less.

    `dimension_` is the mean over points that lie at no point mass; at these LID is 0, by the rule
    of the base class. Where all k places are equally far, the answer is the dimension of the space.

    Args:
        n_neighbors: number of nearest places k, at least 3; more lower the variance, fewer the
            bias.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 9))
    >>> round(MOM().fit(x).dimension_)
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
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        mean = (near.distance / near.distance[:, -1:]).mean(1)
        flat = 1 - mean <= 1e-9
        lid = (mean / (1 - mean)).masked_fill(flat, float(self.n_features_in_))
        stderr = (lid + 1) * (lid / ((lid + 2) * (k - 1))).sqrt()
        return settle(lid, self._tied(lid, stderr, near), near.point_mass)
