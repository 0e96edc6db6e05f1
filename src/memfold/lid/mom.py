"""LID from the mean distance to the nearest neighbours."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, settle


class MOM(NeighborsLID):
    """Method-of-moments LID (Amsaleg et al. 2018, section 4.2; first moment).

    With r_1 <= ... <= r_k the distances to the k nearest places, the r_j / r_k, j < k, are k - 1
    independent variables of law P(r_j / r_k < t) = t^d where the density is flat in the ball.
    Their mean is d / (d + 1), so with m the mean over j < k,

        e = m / (1 - m),    LID = e - e (e + 1) / ((e + 2) (k - 1)),
        standard error = (e + 1) sqrt(e / ((e + 2) (k - 1))),

    where the paper's estimate e loses its bias to first order in 1 / k, and the error is that of
    e by the delta method. Less efficient than `MLE`, by 1 / (d (d + 2)), but small distances, where
    measurement noise sits, weigh less.

    `dimension_` is the mean over points that lie at no point mass; at these LID is 0, by the rule
    of the base class. Where all k places are equally far, the answer is the dimension of the space.

    Args:
        n_neighbors: number of nearest places k, at least 3; more lower the variance, fewer the
            bias.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 9))
    >>> round(MOM().fit(x).dimension_)
    1
    """

    _min_neighbors = 3

    def __init__(self, n_neighbors: int = 20, *, device: str = "cpu") -> None:
        self.n_neighbors = n_neighbors
        self.device = device

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        mean = (near.distance[:, :-1] / near.distance[:, -1:]).mean(1)
        flat = 1 - mean <= 1e-9
        e = (mean / (1 - mean)).masked_fill(flat, float(self.n_features_in_))
        lid = e - e * (e + 1) / ((e + 2) * (k - 1))
        stderr = (e + 1) * (e / ((e + 2) * (k - 1))).sqrt()
        return settle(lid.where(~flat, e), stderr, near.point_mass)
