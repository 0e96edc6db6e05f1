"""LID as the number of large eigenvalues of the neighbours' covariance."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID, settle
from memfold.types import InputError

Version = Literal["fukunaga-olsen", "ratio", "participation"]
_DEFAULTS: dict[str, float | None] = {
    "fukunaga-olsen": 0.05,
    "ratio": 0.95,
    "participation": None,
}
_GROUPS = 10
_BYTES = 2**26


class LPCA(NeighborsLID):
    """Local PCA: the dimension of the k nearest places, by the spectrum of their covariance.

    With l_1 >= l_2 >= ... the eigenvalues of the covariance about the places' own mean:

    - "fukunaga-olsen" (Fukunaga and Olsen 1971): how many l_i >= threshold * l_1 (0.05);
    - "ratio": the fewest that together explain a share `threshold` of the variance (0.95);
    - "participation": (sum l_i)^2 / sum l_i^2, not an integer; d for d equal eigenvalues, less
      otherwise, so that k samples of a d-dimensional Gaussian give about d / (1 + d / k).

    No count exceeds k - 1: take k well above the dimension in question. LID is 0 at point masses,
    by the rule of the base class; `dimension_` is the mean over all other points.

    The standard error is a grouped jackknife: the neighbours are dealt by rank into g = 10
    groups, LID_i leaves group i out, and stderr^2 = (g - 1) / g * sum (LID_i - mean)^2. (Leaving
    out one neighbour at a time is inconsistent for counts; Shao and Wu 1989.) A count that no
    group changes has standard error 0: the choice is then clear, which is not to say right.

    Args:
        n_neighbors: number of nearest places k, at least 3.
        version: which rule reads the spectrum.
        threshold: the rule's threshold, or None for the one given above.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((200, 3)) @ np.eye(3, 8) + 5
    >>> LPCA().fit(x).predict(x[:2])
    array([3., 3.])
    """

    _min_neighbors = 3

    def __init__(
        self,
        n_neighbors: int = 50,
        *,
        version: Version = "fukunaga-olsen",
        threshold: float | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.version = version
        self.threshold = threshold

    def fit(self, X: ArrayLike, y: object = None) -> LPCA:
        """Take the rows of X as the reference.

        Args:
            X: reference points, shape (n, d).
            y: ignored.

        Returns:
            The estimator.

        Raises:
            InputError: for values, shapes or hyper-parameters that cannot be used.
        """
        if self.version not in _DEFAULTS:
            raise InputError(f"version is {self.version!r}: choose one of {sorted(_DEFAULTS)}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}: it must lie between 0 and 1")
        super().fit(X)
        return self

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        lid, stderr = near.distance.new_zeros(2, len(x))
        if k == 0:
            return lid, stderr
        rows = max(1, _BYTES // (8 * k * (x.shape[1] + 12 * k)))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            offset = (self._places[near.place[part]] - x[part, None]).to(torch.float64)
            offset /= near.distance[part, -1, None, None]  # so that no square under- or overflows
            gram = offset @ offset.mT
            lid[part] = self._count(gram)
            if want_stderr:
                stderr[part] = self._jackknife(gram)
        return settle(lid, stderr, near.point_mass)

    def _count(self, gram: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
        """Read the dimension off the Gram matrix of the neighbours, centred here."""
        gram = gram - gram.mean(1, keepdim=True)
        gram = gram - gram.mean(2, keepdim=True)
        if self.version == "participation":
            return gram.diagonal(dim1=1, dim2=2).sum(1) ** 2 / gram.square().sum((1, 2))
        values = torch.linalg.eigvalsh(gram).flip(1).clamp_min(0.0)  # descending
        threshold = _DEFAULTS[self.version] if self.threshold is None else self.threshold
        if self.version == "fukunaga-olsen":
            return (values >= threshold * values[:, :1]).sum(1).to(torch.float64)
        share = values.cumsum(1) / values.sum(1, keepdim=True)
        return (share < threshold).sum(1).to(torch.float64) + 1

    def _jackknife(self, gram: Float[Tensor, "b k k"]) -> Float[Tensor, " b"]:
        k = gram.shape[1]
        groups = min(_GROUPS, k)
        group = torch.arange(k) % groups
        keeps = [torch.nonzero(group != i)[:, 0] for i in range(groups)]
        lids = torch.stack([self._count(gram[:, keep][:, :, keep]) for keep in keeps])
        return (lids.var(0, correction=0) * (groups - 1)).sqrt()
