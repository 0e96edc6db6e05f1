"""LID as the number of large eigenvalues of the neighbours' covariance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memfold.lid._neighbors_base import (
    Neighborhood,
    NeighborsLID,
    centered,
    grouped_jackknife,
    settle,
)
from memfold.linalg.neighbors import Backend
from memfold.types import InputError

Version = Literal["fukunaga-olsen", "fan", "ratio", "participation", "minka"]
_THRESHOLDS = {"fukunaga-olsen": 0.05, "fan": 0.8, "ratio": 0.95}
_FAN_GAP, _FAN_SIGNAL = 10.0, 0.95
_READ_ZEROS = ("fan", "minka")  # for these an eigenvalue of 0 differs from a very small one
_SINGLE = 4e-7  # per row: error of float32 eigenvalues, of the largest one
_ROUNDING = 1e-12  # of the largest eigenvalue: what is below is 0


class LPCA(NeighborsLID):
    """Local PCA: the dimension of the k nearest places, by the spectrum of their covariance.

    With l_1 >= l_2 >= ... the eigenvalues of the covariance about the places' own mean:

    - "fukunaga-olsen" (Fukunaga and Olsen 1971): how many l_i >= threshold * l_1 (0.05);
    - "fan" (Fan et al. 2010): after the mean of all from where 95 % of the variance is exceeded,
      taken as noise, is subtracted, the fewest that explain a share `threshold` (0.8) or end at a
      gap l_i / l_(i+1) > 10. Low by construction: on a flat d-plane about 0.8 d, less 1 where few
      neighbours make the l_i uneven. The same number as scikit-dimension's;
    - "ratio": the fewest that together explain a share `threshold` of the variance (0.95);
    - "participation": (sum l_i)^2 / sum l_i^2, not an integer; d for d equal eigenvalues, less
      otherwise, so that k samples of a d-dimensional Gaussian give about d / (1 + d / k);
    - "minka" (Minka 2000, eq. 30): the i of the largest Laplace evidence of a Gaussian of i free
      directions and equal noise in all others of the space, which it needs: 1 to rank - 1, or the
      rank itself where the places span less of the space than they could.

    No count exceeds k - 1: take k well above the dimension in question. Where the count is that of
    k free directions or more, as far as k places can show, a `CeilingWarning` says so and the
    standard error is NaN. LID is 0 at point masses, by the rule of the base class; `dimension_` is
    the mean over all other points.

    The standard error is a grouped jackknife: the neighbours are dealt by rank into g = 10
    groups, LID_i leaves group i out, and stderr^2 = (g - 1) / g * sum (LID_i - mean)^2. (Leaving
    out one neighbour at a time is inconsistent for counts; Shao and Wu 1989.) A count that no
    group changes has standard error 0: the choice is then clear, which is not to say right.

    Args:
        n_neighbors: number of nearest places k, at least 3.
        version: which rule reads the spectrum.
        threshold: the rule's threshold, or None for the one given above.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

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
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.version = version
        self.threshold = threshold
        self.neighbors = neighbors
        self.device = device

    def _check_parameters(self) -> None:
        if self.version not in get_args(Version):
            raise InputError(f"version is {self.version!r}: choose one of {get_args(Version)}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}: it must lie between 0 and 1")

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        near = self._neighborhood(x, own)
        k = near.distance.shape[1]
        lid, stderr, seen = near.distance.new_zeros(3, len(x))
        for part, matrix, wide in self._matrices(x, near, want_stderr) if k else ():
            lid[part] = self._count(matrix, wide)
            if self.version == "minka":  # whose own answer falls again beyond k directions
                seen[part] = _participation(_scatter(matrix, wide))
            if want_stderr:
                stderr[part] = grouped_jackknife(k, partial(self._kept, matrix, wide))
        if 1 < k <= x.shape[1]:
            at_most = (seen if self.version == "minka" else lid) >= self._ceiling(k)
            stderr = self._bounded(stderr, at_most, near, f"is not below the {k} neighbours")
        return settle(lid, stderr, near.point_mass)

    def _matrices(
        self, x: Float[Tensor, "m d"], near: Neighborhood, want_stderr: bool
    ) -> Iterator[tuple[Tensor | slice, Float[Tensor, "b k _"], bool]]:
        """Give the neighbours' Gram matrices if the space is wide, else their offsets from x."""
        wide = x.shape[1] >= near.distance.shape[1]
        if wide and self.version not in _READ_ZEROS:
            for rows, gram in self._grams(x, near, want_stderr):
                yield rows, gram, True
            return
        for part, offset in self._offsets(x, near):
            yield part, offset @ offset.mT if wide else offset, wide

    def _kept(self, matrix: Tensor, wide: bool, keep: Tensor) -> Tensor:
        return self._count(matrix[:, keep][:, :, keep] if wide else matrix[:, keep], wide)

    def _count(self, matrix: Float[Tensor, "b k _"], wide: bool) -> Float[Tensor, " b"]:
        """Read the dimension off the neighbours, by their Gram matrix if the space is wide."""
        k, scatter = matrix.shape[1], _scatter(matrix, wide)
        if self.version == "participation":
            return _participation(scatter)
        if self.version == "fukunaga-olsen":
            return _above(scatter, self._threshold)
        return self._read(torch.linalg.eigvalsh(scatter).flip(1)[:, :k], k)

    def _read(self, values: Float[Tensor, "b p"], k: int) -> Float[Tensor, " b"]:
        """Read the dimension off eigenvalues in descending order."""
        values = values * (values > _ROUNDING * values[:, :1])
        if self.version == "fan":  # which averages over all, the one that the mean takes away too
            return _fan(values, self._threshold)
        values = values[:, : k - 1]
        if self.version == "minka":
            return _minka(values / k, k, self.n_features_in_)
        return (_share(values) < self._threshold).sum(1).to(torch.float64) + 1

    @property
    def _threshold(self) -> float:
        default = _THRESHOLDS.get(self.version, 0.0)
        return default if self.threshold is None else self.threshold

    def _ceiling(self, k: int) -> float:
        """Give the answer for k free directions, which k neighbours cannot tell from any more.

        The covariance of k Gaussian points in k directions has the eigenvalues s^2, s after the
        quarter-circle law (Marchenko and Pastur 1967).
        """
        s = torch.linspace(0, 2, 4001, dtype=torch.float64)
        below = (s * (4 - s**2).sqrt() / 2 + 2 * (s / 2).asin()) / math.pi
        middle = 1 - (torch.arange(k - 1, dtype=torch.float64) + 0.5) / (k - 1)
        values = torch.from_numpy(np.interp(middle, below, s))[None].square()
        if self.version in ("participation", "minka"):
            return float(values.sum() ** 2 / values.square().sum())
        if self.version == "fukunaga-olsen":
            return float((values >= self._threshold * values[0, 0]).sum())
        padded = torch.cat([values, torch.zeros_like(values[:, :1])], 1)
        return float(self._read(padded, k))


def _scatter(matrix: Float[Tensor, "b k _"], wide: bool) -> Float[Tensor, "b p p"]:
    """Sum the neighbours' products about their mean, over the space or over the neighbours."""
    if wide:
        return centered(matrix)
    matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix.mT @ matrix


def _participation(scatter: Float[Tensor, "b p p"]) -> Float[Tensor, " b"]:
    return scatter.diagonal(dim1=1, dim2=2).sum(1) ** 2 / scatter.square().sum((1, 2))


def _above(scatter: Float[Tensor, "b p p"], threshold: float) -> Float[Tensor, " b"]:
    """Count eigenvalues from a share of the largest on; in float64 where float32 leaves a doubt."""
    size = scatter.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    values = torch.linalg.eigvalsh((scatter / size[:, None, None]).to(torch.float32))
    share = values / values[:, -1:]
    count = (share >= threshold).sum(1)
    doubt = ((share - threshold).abs() <= _SINGLE * scatter.shape[1]).any(1)
    if doubt.any():
        values = torch.linalg.eigvalsh(scatter[doubt])
        count[doubt] = (values >= threshold * values[:, -1:]).sum(1)
    return count.to(torch.float64)


def _share(values: Float[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    return values.cumsum(1) / values.sum(1, keepdim=True)


def _fan(values: Float[Tensor, "b p"], threshold: float) -> Float[Tensor, " b"]:
    """Count as Fan et al. do, by the rule as scikit-dimension has it."""
    noise = (_share(values) > _FAN_SIGNAL).cummax(1).values
    signal = values - ((values * noise).sum(1) / noise.sum(1))[:, None]
    gap = signal[:, :-1] / signal[:, 1:] > _FAN_GAP
    last = torch.ones(len(gap), 1, dtype=torch.bool, device=gap.device)
    stop = torch.cat([gap, last], 1) | (_share(signal) > threshold)
    return stop.to(torch.float64).argmax(1).to(torch.float64) + 1


def _minka(values: Float[Tensor, "b p"], n: int, d: int) -> Float[Tensor, " b"]:
    """Find the rank of largest evidence; `values` are the covariance's first p eigenvalues of d."""
    values = values / values[:, :1]
    p = values.shape[1]
    rank = (values > 0).sum(1)
    i = torch.arange(1, p + 1, dtype=torch.float64, device=values.device)
    tiny = torch.finfo(torch.float64).tiny
    log = values.clamp_min(tiny).log()
    noise = ((values.sum(1, keepdim=True) - values.cumsum(1)) / (d - i).clamp_min(1)).clamp_min(
        tiny
    )
    free = d * i - i * (i + 1) / 2  # m, the parameters of the directions
    sphere = torch.special.gammaln((d - i + 1) / 2) - (d - i + 1) / 2 * math.log(math.pi)
    sphere = (sphere - math.log(2)).cumsum(0)
    difference = (values[:, :, None] - values[:, None]).clamp_min(tiny).log()
    inverse = 1 / values.clamp_min(tiny)[:, None] - 1 / values.clamp_min(tiny)[:, :, None]
    inverse = inverse.clamp_min(tiny).log()  # log(1 / l_j - 1 / l_i) at (i, j)
    later = torch.ones(p, p, dtype=torch.float64, device=values.device).triu(1)
    apart = (difference * later).sum(2) + (d - p) * log
    among = (inverse * later).sum(1).cumsum(1)
    to_noise = (1 / noise[:, None] - 1 / values.clamp_min(tiny)[:, :, None]).clamp_min(tiny).log()
    to_noise = (to_noise * torch.ones_like(later).triu()).sum(1)  # i <= k
    hessian = free * math.log(n) + apart.cumsum(1) + among + (d - i) * to_noise
    evidence = (
        sphere
        - n / 2 * (log.cumsum(1) + (d - i) * noise.log())
        + (free + i) / 2 * math.log(2 * math.pi)
        - hessian / 2
        - i / 2 * math.log(n)
    )
    evidence = evidence.masked_fill(i >= rank[:, None], -torch.inf)
    best = evidence.argmax(1) + 1
    full = min(n - 1, d)
    return torch.where(rank < full, rank, best).to(torch.float64)
