"""Maximum-likelihood LID from the distances to nearest neighbours."""

from __future__ import annotations

import math
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, pareto_lid, settle
from memfold.linalg.neighbors import Backend
from memfold.types import InputError

Pooling = Literal["inverses", "mean"]


class MLE(NeighborsLID):
    """Maximum-likelihood LID (Levina and Bickel 2004, eq. 8, with its unbiased factor).

    With r_1 <= ... <= r_k the distances to the k nearest places, the log(r_k / r_j), j < k, are
    k - 1 independent Exponential(d) variables where the density is flat in the ball, so

        LID = (k - 2) / sum_{j<k} log(r_k / r_j),    standard error = LID / sqrt(k - 2),

    both without bias (Var LID = d^2 / (k - 3), and E LID^2 / (k - 2) is just that). Curvature,
    edges and a density that changes inside the ball are not in the standard error: a point far
    from all others sees them at nearly equal distances, and its LID comes out far too high.

    `bias_correction=False` puts k - 1 for k - 2, the maximum of the likelihood itself and what
    other packages give: higher by (k - 1) / (k - 2) on average than the truth on flat data, with
    the larger mean square error there. Edges and a density that falls inside the ball take away
    more than that in many dimensions, where the uncorrected number then lies nearer to the truth:
    one bias against another, which is why it is no default.

    `dimension_` averages the inverses (MacKay and Ghahramani 2005: the pooled maximum likelihood)
    over the points that lie at no point mass; at these LID is 0, by the rule of the base class.
    `pooling="mean"` averages the LIDs themselves, as some packages do: larger by about
    (k - 1) / (k - 2) where they are uncorrected, and by more where LID varies over the data.
    Where all k places are equally far, the answer is the dimension of the space.

    Args:
        n_neighbors: number of nearest places k, at least 3; more lower the variance, fewer the
            bias.
        bias_correction: whether LID at a point is free of bias on flat data.
        pooling: how `dimension_` averages over points, "inverses" or "mean".
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 9))
    >>> round(MLE().fit(x).dimension_)
    1
    """

    _min_neighbors = 3

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        bias_correction: bool = True,
        pooling: Pooling = "inverses",
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.bias_correction = bias_correction
        self.pooling = pooling
        self.neighbors = neighbors
        self.device = device

    def _check_parameters(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise InputError(f"pooling is {self.pooling!r}: choose one of {get_args(Pooling)}")

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        logs = near.distance[:, -1:].log() - near.distance.log()
        lid = pareto_lid(logs.sum(1), k - 1, self.n_features_in_)
        stderr = self._tied(lid, lid * self._factor(k) / math.sqrt(k - 2), near)
        return settle(lid * self._factor(k), stderr, near.point_mass)

    def _factor(self, k: int) -> float:
        return 1.0 if self.bias_correction else (k - 1) / (k - 2)

    def _global(self, lid: Float[Tensor, " n"]) -> float:
        if self.pooling == "mean":
            return super()._global(lid)
        inverse = 1 / lid[lid > 0]
        if not len(inverse):
            return 0.0
        k = min(self.n_neighbors_, len(self._places) - 1)
        return (k - 1) / (k - 2) / self._factor(k) / float(inverse.mean())  # as if uncorrected
