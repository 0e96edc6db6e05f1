"""What all estimators of LID from nearest neighbours share: places, copies, the estimator law."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from memfold.linalg.gram import SharedGram
from memfold.linalg.neighbors import Backend, check_backend, distinct, nearest
from memfold.types import InputError

_GROUPS = 10
_BYTES = 2**24
_CACHE = 2**21  # bytes of matrices at a time where a processor's cache sets the pace
_SHARED_BYTES = 2**28  # largest matrix of all places' products


class PointMassWarning(UserWarning):
    """Some points lie at a point mass of the reference: their LID is 0."""


class CeilingWarning(UserWarning):
    """Some points have a LID beyond what the neighbours can show: the number is a lower bound."""


@dataclass(frozen=True)
class Neighborhood:
    """The nearest places of a batch of points, a point's own place left out.

    Attributes:
        distance: Euclidean distances, ascending and above 0, shape (m, k).
        place: index of each place, shape (m, k).
        point_mass: whether the point lies at a point mass, shape (m,).
    """

    distance: Float[Tensor, "m k"]
    place: Int[Tensor, "m k"]
    point_mass: Bool[Tensor, " m"]


class NeighborsLID(BaseEstimator):
    """Base of the estimators: `fit` a reference, then ask for the LID at points.

    Rows of the reference that are equal are one *place* with several *copies*. The dimension is
    measured on places, each counted once, since a density, which all these methods assume, has
    no ties; the place that a point itself stands on carries no direction and is left out. So the
    LID at a training row is the same from `predict` and from `fit_predict`, but for the rule:

    A point lies at a point mass, LID 0, if the nearest place (its own included) holds at least
    half of the `n_neighbors` nearest rows (and at least 2), and stands at no more than a tenth of
    the distance to the next place. The first condition says that mass sits on one spot; the
    second, that the point cannot be told from that spot: for a density of dimension d the ratio
    of the two distances is below 1/10 with probability 10^-d (the law behind TwoNN). A generated
    near copy of a repeated image thus has LID 0, and a lone image whose nearest neighbours happen
    to be 40 copies of some far image has not. With too few places to measure, the LID is 0 too.
    A warning counts these points.

    Where the answer stands at the most that a method can give, since the neighbours are all
    equally far or the dimension is not below their number, it is a lower bound: a `CeilingWarning`
    counts these points, and their standard error is NaN.
    """

    _min_neighbors: ClassVar[int] = 2
    _copy_ratio: ClassVar[float] = 0.1

    n_neighbors: int | None
    neighbors: Backend
    device: str

    def fit(self, X: ArrayLike, y: object = None) -> NeighborsLID:
        """Take the rows of X as the reference.

        Args:
            X: reference points, shape (n, d).
            y: ignored.

        Returns:
            The estimator.

        Raises:
            InputError: for values, shapes or hyper-parameters that cannot be used.
        """
        self._check_parameters()
        device = self._device()
        check_backend(self.neighbors, device)
        X = self._validated(X, reset=True)
        k, n = self.n_neighbors, len(X)
        if k is not None and k < self._min_neighbors:
            raise InputError(
                f"n_neighbors is {k}: {type(self).__name__} needs at least {self._min_neighbors}"
            )
        if k is not None and k > n - 1:
            warnings.warn(
                f"n_neighbors is {k} but the reference has {n} rows: all {n - 1} others are used",
                stacklevel=2,
            )
        self.n_neighbors_ = n - 1 if k is None else min(k, n - 1)
        self._places, self._place_of_row, self._copies = distinct(_tensor(X).to(device))
        self._lid: Tensor | None = None
        self._dimension: float | None = None
        self._prepare()
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Measure the LID at new points.

        Args:
            X: points, shape (m, d).

        Returns:
            LID in degrees of freedom, shape (m,).
        """
        return self._predict(X, want_stderr=False)[0]

    def predict_with_stderr(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure the LID at new points, with its standard error.

        Args:
            X: points, shape (m, d).

        Returns:
            LID and standard error in degrees of freedom, shape (m,) each.
        """
        return self._predict(X, want_stderr=True)

    def fit_predict(self, X: ArrayLike, y: object = None) -> NDArray[np.float64]:
        """Measure the LID at each reference point, the point itself left out.

        Args:
            X: reference points, shape (n, d).
            y: ignored.

        Returns:
            LID in degrees of freedom, shape (n,).
        """
        return self.fit(X)._leave_one_out(want_stderr=False)[0]

    def fit_predict_with_stderr(
        self, X: ArrayLike, y: object = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure the LID at each reference point, itself left out, with its standard error.

        Args:
            X: reference points, shape (n, d).
            y: ignored.

        Returns:
            LID and standard error in degrees of freedom, shape (n,) each.
        """
        return self.fit(X)._leave_one_out(want_stderr=True)

    @property
    def dimension_(self) -> float:
        """The dimension of the reference as a whole, over points that lie at no point mass."""
        check_is_fitted(self)
        if self._dimension is None:
            self._dimension = self._whole()
        return self._dimension

    def _check_parameters(self) -> None:
        """Refuse hyper-parameters that cannot be used."""

    def _prepare(self) -> None:
        """Compute what a method needs of the reference, once."""

    def _local(
        self, x: Tensor, own: bool, want_stderr: bool
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Measure LID and stderr at x; with `own`, x is the list of places, one copy left out."""
        raise NotImplementedError

    def _whole(self) -> float:
        """Measure the dimension of the reference as a whole."""
        if self._lid is None:
            self._leave_one_out(want_stderr=False)
        return self._global(self._lid)  # type: ignore[arg-type]

    def _global(self, lid: Float[Tensor, " n"]) -> float:
        """Average the LID over the reference."""
        return float(lid[lid > 0].mean()) if (lid > 0).any() else 0.0

    def _predict(
        self, X: ArrayLike, want_stderr: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        check_is_fitted(self)
        x = _tensor(self._validated(X, reset=False)).to(self._places)
        lid, stderr = self._local(x, False, want_stderr)
        return lid.cpu().numpy(), stderr.cpu().numpy()

    def _leave_one_out(self, want_stderr: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        local = self._local(self._places, True, want_stderr)
        lid, stderr = (value[self._place_of_row] for value in local)
        self._lid = lid
        return lid.cpu().numpy(), stderr.cpu().numpy()

    def _device(self) -> torch.device:
        try:
            return torch.zeros(1, device=self.device).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device is {self.device!r}, which torch cannot use here") from error

    def _nearest(self, x: Float[Tensor, "m d"], k: int) -> tuple[Tensor, Tensor]:
        """Search the places, in the way that the user chose."""
        return nearest(x, self._places, k, backend=self.neighbors)

    def _neighborhood(
        self, x: Float[Tensor, "m d"], own: bool, most: int | None = None
    ) -> Neighborhood:
        """Find the nearest places of each point, and tell which points lie at a point mass.

        `most`, 2 or more, finds no more than so many of them; the point masses stay the same.
        """
        places = len(self._places)
        k = min(self.n_neighbors_, places - 1)
        k = k if most is None else min(k, most)
        if k < self._min_neighbors:
            everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
            self._warn(everywhere, own)
            nothing = x.new_empty(len(x), 0, dtype=torch.float64)
            return Neighborhood(nothing, nothing.long(), everywhere)
        distance, place = self._nearest(x, k + 1)
        at_place = distance[:, 0] == 0
        copies = self._copies[place[:, 0]] - (1 if own else 0)
        next_copies = self._copies[place[:, 1]]
        ratio = distance[:, :2] / distance[:, 1:3]
        many = max(2, math.ceil(self.n_neighbors_ / 2))
        point_mass = (copies >= many) & (ratio[:, 0] <= self._copy_ratio)
        point_mass |= at_place & (next_copies >= many) & (ratio[:, 1] <= self._copy_ratio)
        self._warn(point_mass, own)
        columns = at_place[:, None].long() + torch.arange(k, device=x.device)
        return Neighborhood(distance.gather(1, columns), place.gather(1, columns), point_mass)

    def _offsets(
        self, x: Float[Tensor, "m d"], near: Neighborhood
    ) -> Iterator[tuple[slice, Float[Tensor, "b k d"]]]:
        """Give where the neighbours stand from each point, the farthest at distance 1, in parts."""
        k = near.distance.shape[1]
        rows = max(1, _BYTES // (8 * k * (x.shape[1] + 8 * k)))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            offset = (self._places[near.place[part]] - x[part, None]).to(torch.float64)
            offset /= near.distance[part, -1, None, None]  # so that no square under- or overflows
            yield part, offset

    def _grams(
        self, x: Float[Tensor, "m d"], near: Neighborhood, want_stderr: bool
    ) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b k k"]]]:
        """Give the neighbours' scalar products about some origin, at some scale, in parts.

        They are read off those of all places where that is cheaper and exact enough, else
        computed from differences; always so for a jackknife, since what is exact enough for all
        neighbours need not be so for those left when one group is out.
        """
        rows = torch.arange(len(x), device=x.device)
        n, k = len(self._places), near.distance.shape[1]
        cheaper = n**2 <= len(x) * k**2 and 8 * n**2 <= _SHARED_BYTES
        if want_stderr or not cheaper or k > x.shape[1]:
            for part, offset in self._offsets(x, near):
                yield rows[part], offset @ offset.mT
            return
        shared, left = SharedGram(self._places), [rows[:0]]
        for some in rows.split(max(1, min(_BYTES, _CACHE) // (8 * k**2))):
            gram = shared.gather(near.place[some])
            sure = shared.sure(near.place[some], gram)
            left.append(some[~sure])
            if sure.any():
                yield some[sure], gram if sure.all() else gram[sure]
        rows = torch.cat(left)
        rest = Neighborhood(near.distance[rows], near.place[rows], near.point_mass[rows])
        for part, offset in self._offsets(x[rows], rest):
            yield rows[part], offset @ offset.mT

    def _bounded(
        self, stderr: Float[Tensor, " m"], at_most: Bool[Tensor, " m"], near: Neighborhood, why: str
    ) -> Float[Tensor, " m"]:
        """Warn of LIDs at a method's ceiling, and take away their standard error."""
        at_most = at_most & ~near.point_mass
        if at_most.any():
            warnings.warn(
                f"{int(at_most.sum())} of {len(at_most)} points have a LID that {why}: it is a "
                "lower bound, without a standard error; pass a larger n_neighbors",
                CeilingWarning,
                stacklevel=5,
            )
        return stderr.masked_fill(at_most, torch.nan)

    def _tied(
        self, lid: Float[Tensor, " m"], stderr: Float[Tensor, " m"], near: Neighborhood
    ) -> Float[Tensor, " m"]:
        """Do so where ties left no answer but the dimension of the space."""
        tied = (lid == self.n_features_in_) & (self.n_features_in_ > 1)
        return self._bounded(stderr, tied, near, "no distance bounds, since all are equal")

    def _warn(self, point_mass: Bool[Tensor, " m"], own: bool) -> None:
        count, total = int(point_mass.sum()), len(point_mass)
        if own:
            count, total = int(self._copies[point_mass].sum()), len(self._place_of_row)
        if count:
            warnings.warn(
                f"{count} of {total} points lie at a point mass of the reference "
                f"(copies of one row fill at least half of the neighbourhood): LID 0",
                PointMassWarning,
                stacklevel=6,
            )

    def _validated(self, X: ArrayLike, reset: bool) -> NDArray[Any]:
        least = self._min_neighbors + 1 if reset else 1
        try:
            return validate_data(
                self, X, reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=least
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error


def pareto_lid(log_ratios: Float[Tensor, " m"], count: int, n_features: int) -> Float[Tensor, " m"]:
    """Estimate a dimension d, without bias, from a sum of independent Exponential(d) log-ratios.

    (count - 1) / sum. Ratios that are all 1 to rounding (a simplex, say) give no upper bound:
    the largest possible dimension, that of the space, is then the answer.
    """
    flat = log_ratios <= count * 1e-9
    return torch.where(flat, float(n_features), (count - 1) / log_ratios.masked_fill(flat, 1.0))


def grouped_jackknife(
    k: int, statistic: Callable[[Int[Tensor, " kept"]], Float[Tensor, " b"]]
) -> Float[Tensor, " b"]:
    """Give the standard error of a statistic of k neighbours, a tenth of them left out at a time.

    Neighbours are dealt by rank into g = 10 groups, and
    stderr^2 = (g - 1) / g * sum (statistic without group i - their mean)^2.
    """
    groups = min(_GROUPS, k)
    group = torch.arange(k) % groups
    values = torch.stack([statistic(torch.nonzero(group != i)[:, 0]) for i in range(groups)])
    return (values.var(0, correction=0) * (groups - 1)).sqrt()


def centered(gram: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    """Move the origin of scalar products to the mean of their points."""
    mean = gram.mean(1)
    return (gram - mean[:, None]).sub_((mean - mean.mean(1, keepdim=True))[:, :, None])


def _tensor(X: NDArray[Any]) -> Tensor:
    """View an array as a tensor; copy it only if torch could not share it."""
    return torch.from_numpy(X if X.flags.writeable else X.copy())


def settle(
    lid: Float[Tensor, " m"], stderr: Float[Tensor, " m"], point_mass: Bool[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Set LID and standard error to 0 at point masses."""
    return lid.masked_fill(point_mass, 0.0), stderr.masked_fill(point_mass, 0.0)
