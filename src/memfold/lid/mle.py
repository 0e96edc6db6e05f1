"""Maximum-likelihood LID from the distances to nearest neighbours."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, pareto_lid, settle


class MLE(NeighborsLID):
    """Maximum-likelihood LID (Levina and Bickel 2004, eq. 8, with its unbiased factor).

    With r_1 <= ... <= r_k the distances to the k nearest places, the log(r_k / r_j), j < k, are
    k - 1 independent Exponential(d) variables where the density is flat in the ball, so

        LID = (k - 2) / sum_{j<k} log(r_k / r_j),    standard error = LID / sqrt(k - 2),

    both without bias (Var LID = d^2 / (k - 3), and E LID^2 / (k - 2) is just that). Curvature,
    edges and a density that changes inside the ball are not in the standard error: a point far
    from all others sees them at nearly equal distances, and its LID comes out far too high.

    `dimension_` averages the inverses (MacKay and Ghahramani 2005: the pooled maximum likelihood)
    over the points that lie at no point mass; at these LID is 0, by the rule of the base class.
    Where all k places are equally far, the answer is the dimension of the space.

    Args:
        n_neighbors: number of nearest places k, at least 3; more lower the variance, fewer the
            bias.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 9))
    >>> round(MLE().fit(x).dimension_)
    1
    """

    _min_neighbors = 3

    def __init__(self, n_neighbors: int = 20) -> None:
        self.n_neighbors = n_neighbors

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        logs = near.distance[:, -1:].log() - near.distance.log()
        lid = pareto_lid(logs.sum(1), k - 1, self.n_features_in_)
        return settle(lid, lid / math.sqrt(k - 2), near.point_mass)

    def _global(self, lid: Float[Tensor, " n"]) -> float:
        inverse = 1 / lid[lid > 0]  # of the unbiased LID: (k - 2) / (k - 1) undoes its factor
        if not len(inverse):
            return 0.0
        k = min(self.n_neighbors_, len(self._places) - 1)
        return (k - 1) / (k - 2) / float(inverse.mean())
