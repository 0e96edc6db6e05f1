"""LID of the data itself, by the closed-form denoiser of a reference set."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from torch import Tensor

from memfold.lid._neighbors_base import NeighborsLID
from memfold.linalg.neighbors import Backend
from memfold.tensors import base_seed, normal_like
from memfold.types import InputError

_BYTES = 2**27


class EmpiricalLID(NeighborsLID):
    """FLIPD of the data: the LID that a perfect denoiser of the reference set has at scale sigma.

    With y_j the k nearest places, m_j their copies and w_j ~ m_j exp(-|x - y_j|^2 / (2 sigma^2)),

        D(x) = sum w_j y_j,    tr dD/dx = sum w_j |y_j - D(x)|^2 / sigma^2,

    and LID = tr dD/dx + |D(x) - x|^2 / sigma^2 at x itself (`at="x"`: Kamkari et al. 2024), or the
    mean of tr dD/dx at x + sigma n over noises n (`at="noised"`), with its standard error. It
    shares scale and bias with the LID of a diffusion model at the same sigma. Copies count with
    their mass: at a point mass, well apart from other places, D is constant and the LID is 0.
    In `fit_predict` one copy of the row itself, by index, carries no mass.

    The answer describes the data only if sigma spans several places. Warnings count the points
    where it does not, and those where the k-th weight is above a hundredth of the largest.

    Args:
        sigma: noise standard deviation, in the units of the data; the default suits images in
            [-1, 1], and a model is compared at its own.
        n_neighbors: number of nearest places k that enter the sums; None takes all.
        at: "noised" or "x".
        n_noises: noises a point, for "noised"; at least 2 for a standard error.
        random_state: seed of the noise, which is keyed by each point's content; an int, a
            `numpy.random.RandomState`, or None for fresh noise at each fit.
        neighbors: "exact", or "faiss" where it is installed: the same answer by its search.
        device: where torch computes: "cpu", "cuda", ...

    >>> import numpy as np
    >>> x = np.random.default_rng(0).uniform(size=(2000, 2)) @ np.eye(2, 9)
    >>> round(EmpiricalLID(0.05, random_state=0).fit(x).predict(x.mean(0)[None])[0])
    2
    """

    def __init__(
        self,
        sigma: float = 0.1,
        *,
        n_neighbors: int | None = None,
        at: Literal["noised", "x"] = "noised",
        n_noises: int = 8,
        random_state: int | np.random.RandomState | None = None,
        neighbors: Backend = "exact",
        device: str = "cpu",
    ) -> None:
        self.sigma = sigma
        self.n_neighbors = n_neighbors
        self.at = at
        self.n_noises = n_noises
        self.random_state = random_state
        self.neighbors = neighbors
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> EmpiricalLID:
        """Take the rows of X as the reference.

        Args:
            X: reference points, shape (n, d).
            y: ignored.

        Returns:
            The estimator.

        Raises:
            InputError: for values, shapes or hyper-parameters that cannot be used.
        """
        if not (np.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"sigma is {self.sigma}: pass a positive, finite noise level")
        if self.at not in ("noised", "x"):
            raise InputError(f"at is {self.at!r}: choose 'noised' or 'x'")
        if self.at == "noised" and self.n_noises < 2:
            raise InputError(f"n_noises is {self.n_noises}: a standard error needs at least 2")
        if self.random_state is None:
            self._seed = base_seed(None)
        else:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        super().fit(X)
        return self

    def _local(
        self, x: Float[Tensor, "m d"], own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        lid, stderr = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
        coarse, cut = torch.zeros(2, len(x), dtype=torch.bool, device=x.device)
        places = len(self._places)
        k = places if self.n_neighbors is None else min(self.n_neighbors_, places)
        noises = 1 if self.at == "x" else self.n_noises
        rows = max(1, _BYTES // (24 * noises * (places + x.shape[1])))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            points = x[part, None]
            if self.at == "noised":
                points = points + self.sigma * normal_like(x[part], noises, self._seed)
            left_out = (
                torch.arange(len(x), device=x.device)[part, None].expand(-1, noises)
                if own
                else None
            )
            trace, bias, count, tail = self._moments(points, left_out, k)
            value = trace if self.at == "noised" else trace + bias
            lid[part] = value.mean(1)
            coarse[part], cut[part] = (count < 1.5).any(1), (tail > 0.01).any(1)
            if noises > 1:
                stderr[part] = value.std(1) / noises**0.5
        self._diagnose(coarse, cut & (k < places - 1))
        return lid, stderr

    def _moments(
        self, points: Float[Tensor, "m s d"], left_out: Tensor | None, k: int
    ) -> tuple[Tensor, ...]:
        """Give tr dD/dx, |D - x|^2 / sigma^2, effective rows, last weight over first: (m, s) each.

        The effective number of rows is that of places, exp(entropy), or infinite at a point mass:
        one place that holds several copies is a fact of the data, not a want of scale.
        """
        flat, m = points.flatten(0, 1), points.shape[0] * points.shape[1]
        own = (
            left_out.flatten() if left_out is not None else torch.full((m,), -1, device=flat.device)
        )
        found = min(k + int(left_out is not None), len(self._places))
        distance, place = self._found(flat, found)
        copies = self._copies[place] - (place == own[:, None]).long()  # 0 if the row was alone
        copies[(copies > 0).cumsum(1) > k] = 0
        log_weight = copies.to(torch.float64).log() - distance.square() / (2 * self.sigma**2)
        weight = log_weight.softmax(1)
        dense = weight.new_zeros(m, len(self._places)).scatter_(1, place, weight)
        center = self._places[0].to(torch.float64)  # weights sum to 1, so any origin serves
        bias = (dense @ (self._places - center) + (center - flat)).square().sum(1)
        trace = (weight * distance.square()).sum(1) - bias  # weighted variance about D
        count = torch.special.entr(weight).sum(1).exp()
        top = copies.gather(1, weight.argmax(1, keepdim=True))[:, 0]
        count = count.masked_fill(top >= 2, torch.inf)
        tail = weight.masked_fill(copies == 0, torch.inf).amin(1) / weight.amax(1)
        values = trace.clamp_min(0.0) / self.sigma**2, bias / self.sigma**2, count, tail
        return tuple(value.reshape(points.shape[:2]) for value in values)

    def _found(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest places; where all are asked for, in their own order."""
        if k < len(self._places):
            return self._nearest(x, k)
        places, exact = self._places.to(torch.float64), "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(x.to(torch.float64), places, compute_mode=exact)
        return distance, torch.arange(k, device=x.device).expand(len(x), -1)

    def _global(self, lid: Float[Tensor, " n"]) -> float:
        return float(lid.mean())

    def _diagnose(self, coarse: Tensor, cut: Tensor) -> None:
        if coarse.any():
            warnings.warn(
                f"sigma {self.sigma} is below the spacing of the reference at {int(coarse.sum())} "
                f"of {len(coarse)} points, where it sees single rows: pass a larger sigma",
                stacklevel=5,
            )
        if cut.any():
            warnings.warn(
                f"{self.n_neighbors} neighbours do not span sigma {self.sigma} at "
                f"{int(cut.sum())} of {len(cut)} points: pass a larger n_neighbors",
                stacklevel=5,
            )
