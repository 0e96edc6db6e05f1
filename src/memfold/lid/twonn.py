"""LID from the ratio of the distances to the two nearest neighbours."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.lid._neighbors_base import Neighborhood, NeighborsLID, pareto_lid, settle
from memfold.linalg.neighbors import Backend


class TwoNN(NeighborsLID):
    """Two-nearest-neighbours LID (Facco et al. 2017), made local.

    mu = r_2 / r_1, the ratio of the distances to the two nearest places, follows the Pareto law
    P(mu > t) = t^-d (eq. 5) where the density is flat out to r_2 only: the smallest scale that
    data offer. One ratio says little, so the LID at x pools, by maximum likelihood, that of x and
    those of its k nearest places, each within the whole reference:

        LID = k / sum_{j=0..k} log mu_j,    standard error = 1.2 LID / sqrt(k - 1),

    unbiased for independent ratios. Neighbours share distances (about half of all nearest
    neighbours are mutual), which widens the error by 20 % at d = 1, 2 and 5 (simulated): the 1.2.

    `dimension_` is the paper's fit (eq. 7): the slope through the origin of -log(1 - F(mu))
    against log mu, F = i / n at the i-th smallest of n, over the lowest `fraction` of them. LID is
    0 at point masses, by the rule of the base class.

    Args:
        n_neighbors: number of nearest places whose ratios are pooled, at least 2.
        fraction: share of the ratios, from the smallest, that `dimension_` is fitted to.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).uniform(size=(2000, 2)) @ np.ones((2, 2))
    >>> round(TwoNN().fit(x).dimension_)
    1
    """

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        fraction: float = 0.9,
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.fraction = fraction
        self.neighbors = neighbors
        self.device = device

    def _prepare(self) -> None:
        self._log_ratio: Tensor | None = None  # of all places, once a search has found it

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        if k == 0:
            return near.distance.sum(1), near.distance.sum(1)
        itself = _log_ratio(near)
        if own:
            self._log_ratio = itself
        total = itself + self._ratios(near.place).sum(1)
        lid = pareto_lid(total, k + 1, self.n_features_in_)
        stderr = self._tied(lid, 1.2 * lid / math.sqrt(k - 1), near)
        return settle(lid, stderr, near.point_mass)

    def _ratios(self, place: Int[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        """Give log mu of the places asked for, and search for no others."""
        if self._log_ratio is not None:
            return self._log_ratio[place]
        which, index = place.unique(return_inverse=True)
        distance, _ = self._nearest(self._places[which], 3)
        return (distance[:, 2] / distance[:, 1]).log()[index]

    def _survey(self) -> Bool[Tensor, " n"]:
        """Find log mu of all places by their two neighbours alone; tell the point masses."""
        near = self._neighborhood(self._places, True, most=2)
        if near.distance.shape[1]:
            self._log_ratio = _log_ratio(near)
        return near.point_mass

    def _whole(self) -> float:
        """Fit the ratios; a search for `n_neighbors` is not needed here."""
        if bool(self._survey().all() if self._lid is None else (self._lid == 0).all()):
            return 0.0
        n = len(self._places)
        kept = max(1, min(n - 1, int(self.fraction * n)))  # at n itself F is 1
        log_mu = self._log_ratio.sort().values[:kept]  # type: ignore[union-attr]
        rank = torch.arange(1, kept + 1, dtype=torch.float64, device=log_mu.device)
        square = float(log_mu.square().sum())
        slope = -float((log_mu * torch.log1p(-rank / n)).sum())
        return slope / square if square > 0 else float(self.n_features_in_)


def _log_ratio(near: Neighborhood) -> Float[Tensor, " m"]:
    return (near.distance[:, 1] / near.distance[:, 0]).log()
