"""How many copies an audit would have found: its own rule on copies planted among its subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor

from memfold.memorization.comparison import Comparison, array, doubts
from memfold.memorization.conformal import q_values
from memfold.types import Estimate, InputError

COPY_LID = (1.0, 3.0)  # model-side LID of a planted copy, uniform
WANTED = 0.8  # share of the copies that has to be called
_POOL = 400  # copies whose p-values are computed once, where subjects are not in the reference
_PLANTED = 400  # copies planted for one number k, at least
_OUTSIDE = 20  # copies outside the reference whose p-values each audit computes anew, at most
_AUDITS = 40  # simulated audits for one number k, at least


@dataclass(frozen=True)
class Power:
    """What an audit of m subjects against n reference images can find.

    Attributes:
        copies: the number k of copies that it must not miss.
        share: share of k planted copies that is called memorized.
        stderr: standard error of that share.
        smallest: the smallest number of copies of which 80 % are called; None where no number is.
        subjects: m, without those that could not be measured.
        reference: n, likewise.
        alpha: false-discovery rate.
        own: whether all subjects are themselves part of the reference.
    """

    copies: int
    share: float
    stderr: float
    smallest: int | None
    subjects: int
    reference: int
    alpha: float
    own: bool

    @property
    def suffices(self) -> bool:
        """Whether 80 % of the copies that must not be missed are called."""
        return self.share >= WANTED

    @property
    def reference_needed(self) -> int:
        """Reference images that let Benjamini-Hochberg call k copies below all of them."""
        return ceil(self.subjects / (self.alpha * self.copies) - 1e-9) - 1

    @property
    def subjects_allowed(self) -> int:
        """Subjects among which it can call k copies; 0 where not even k subjects are few enough."""
        most = self.alpha * (self.reference if self.own else self.copies * (self.reference + 1))
        return int(most + 1e-9) if most + 1e-9 >= self.copies else 0


def power(
    model: Estimate,
    *,
    reference_model: Estimate,
    complexity: ArrayLike | Tensor | None = None,
    reference_complexity: ArrayLike | Tensor | None = None,
    misfit: ArrayLike | Tensor | None = None,
    reference_misfit: ArrayLike | Tensor | None = None,
    reference_index: ArrayLike | Tensor | None = None,
    alpha: float = 0.05,
    copies: int = 1,
    seed: int = 0,
) -> Power:
    """Simulate how many copies `judge` would call, and the fewest that it would find.

    k of the m subjects, drawn at random, are replaced by copies: model-side LID uniform on 1 to 3,
    complexity, misfit and standard error of the subject whose place they take. The rule of `judge`
    (conformal p-values, Benjamini-Hochberg, trust) then runs on them and on m - k subjects that
    are exchangeable with the reference: p-values uniform on 1/(n+1) ... 1. A subject that stands
    in the reference is replaced there too.

    Args:
        model: model-side LID of the subjects, shape (m,). Their values are read only where a
            subject is part of the reference; where they are not finite no copy can be seen.
        reference_model: model-side LID of the reference, shape (n,).
        complexity: covariates (m, p) of the subjects, as in `judge`.
        reference_complexity: the same (n, p) of the reference.
        misfit: as in `judge`.
        reference_misfit: as in `judge`.
        reference_index: as in `judge`.
        alpha: false-discovery rate.
        copies: the number k of copies that must not be missed.
        seed: keys the simulation.

    Returns:
        The share of k copies that is called, and the smallest k with 80 %.

    Raises:
        InputError: more copies than subjects, or what `judge` refuses.
    """
    compared = Comparison.of(
        model, reference_model, complexity, reference_complexity, reference_index
    )
    m = len(compared.z)
    if not 1 <= copies <= max(m, 1):
        raise InputError(
            f"{copies} copies among {m} subjects; choose a number from 1 to {max(m, 1)}"
        )
    if (misfit is None) != (reference_misfit is None):
        raise InputError("misfit is needed of both subjects and reference, or of none")
    planted = _Planting(
        compared, model, reference_model, misfit, reference_misfit, alpha=alpha, seed=seed
    )
    share, stderr = planted.called(copies)
    return Power(
        copies=copies,
        share=share,
        stderr=stderr,
        smallest=planted.smallest(),
        subjects=planted.tests,
        reference=planted.n,
        alpha=alpha,
        own=bool(m and (compared.index >= 0).all()),
    )


class _Planting:
    """Audits with planted copies."""

    def __init__(
        self,
        compared: Comparison,
        model: Estimate,
        reference: Estimate,
        misfit: Any,
        reference_misfit: Any,
        *,
        alpha: float,
        seed: int,
    ) -> None:
        self.compared, self.reference, self.alpha, self.seed = compared, reference, alpha, seed
        self.lid, self.stderr = array(model.lid), array(model.stderr)
        self.misfit = None if misfit is None else array(misfit)
        self.reference_misfit = reference_misfit
        self.tested = np.isfinite(self.lid) & np.isfinite(compared.z).all(1)
        self.tests = int(self.tested.sum())
        sound = np.isfinite(compared.reference_z).all(1)
        self.n = int((np.isfinite(array(reference.lid)) & sound).sum())
        self._known: dict[int, tuple[float, float]] = {}

    def smallest(self) -> int | None:
        """The smallest number of copies of which 80 % are called."""
        low, high = self.least, self.least
        while high <= self.tests and self.called(high)[0] < WANTED:
            low, high = high + 1, min(2 * high, self.tests) if high < self.tests else high + 1
        if high > self.tests:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.called(middle)[0] < WANTED:
                low = middle + 1
            else:
                high = middle
        return high

    @property
    def least(self) -> int:
        """The fewest copies that Benjamini-Hochberg can call at all, all of them lowest."""
        if self.tests and (self.compared.index[self.tested] >= 0).all():  # the j-th has p >= j / n
            return 1 if self.tests <= self.alpha * self.n * (1 + 1e-12) else self.tests + 1
        return max(1, ceil(self.tests / (self.alpha * (self.n + 1)) * (1 - 1e-12)))

    def called(self, k: int) -> tuple[float, float]:
        """Share of k copies that is called, and its standard error."""
        if k not in self._known:
            self._known[k] = (0.0, 0.0) if k < self.least or not self.tests else self._share(k)
        return self._known[k]

    def _share(self, k: int) -> tuple[float, float]:
        random = np.random.default_rng([self.seed, k])
        own = (self.compared.index >= 0).any()
        audits = self._among_their_own(k, random) if own else self._from_pool(k, random)
        shares = np.array([audit.mean() for audit in audits])
        share = float(shares.mean())
        error = shares.var(ddof=1) / len(shares) + (0 if own else share * (1 - share) / _POOL)
        return share, float(np.sqrt(error))

    def _from_pool(self, k: int, random: np.random.Generator) -> Iterator[ndarray]:
        """Which copies each audit calls, where no subject stands in the reference."""
        p_copy, trusted = self._pool
        for _ in range(max(_AUDITS, ceil(_PLANTED / k))):
            i = random.integers(_POOL, size=k)
            p = np.concatenate([p_copy[i], self._fair(self.tests - k, random)])
            yield (q_values(p)[:k] <= self.alpha) & trusted[i]

    @cached_property
    def _pool(self) -> tuple[ndarray, ndarray]:
        random = np.random.default_rng(self.seed)
        place = random.integers(len(self.lid), size=_POOL)
        lid = self._plant(place, random)
        return self._copies(place, lid, array(self.reference.lid))

    def _among_their_own(self, k: int, random: np.random.Generator) -> Iterator[ndarray]:
        """Which copies each audit calls, where subjects stand in the reference too."""
        index = self.compared.index
        for _ in range(max(_AUDITS, ceil(_PLANTED / 4 / k))):
            place = random.permutation(len(self.lid))[:k]
            lid, others = self.lid.copy(), array(self.reference.lid).copy()
            lid[place] = self._plant(place, random)
            inside, outside = place[index[place] >= 0], place[index[place] < 0]
            others[index[inside]] = lid[inside]
            rest = np.setdiff1d(np.flatnonzero(index >= 0), place)
            few = outside[:_OUTSIDE]  # whose p-values are computed; the others have one of theirs
            rows = np.concatenate([inside, few, rest])
            p, trusted = self._copies(rows, lid[rows], others)
            again = len(inside) + random.integers(max(len(few), 1), size=len(outside) - len(few))
            own = np.concatenate([np.arange(len(inside) + len(few)), again])
            missing = self._fair(self.tests - int(self.tested[[*place, *rest]].sum()), random)
            q = q_values(np.concatenate([p[own], p[len(inside) + len(few) :], missing]))
            yield (q[:k] <= self.alpha) & trusted[own]

    def _plant(self, place: ndarray, random: np.random.Generator) -> ndarray:
        return np.where(self.tested[place], random.uniform(*COPY_LID, size=len(place)), np.nan)

    def _fair(self, size: int, random: np.random.Generator) -> ndarray:
        """p-values of subjects that are exchangeable with the reference."""
        return random.integers(1, self.n + 2, size=max(size, 0)) / (self.n + 1)

    def _copies(self, rows: ndarray, lid: ndarray, others: ndarray) -> tuple[ndarray, ndarray]:
        """p-values of these subjects with these LIDs, and whether a call of each is trusted."""
        whole = self.compared
        compared = Comparison(whole.z[rows], whole.reference_z, whole.index[rows])
        misfit = None if self.misfit is None else self.misfit[rows]
        theta = compared.calibrate(lid, others)
        reason = doubts(
            compared,
            theta,
            _estimate(lid, self.stderr[rows]),
            _estimate(others, array(self.reference.stderr)),
            np.ones(len(rows), bool),
            compared.unfit(misfit, self.reference_misfit),
            self.alpha,
        )
        return theta.p_value, reason == ""


def _estimate(lid: ndarray, stderr: ndarray) -> Any:
    from torch import from_numpy

    return Estimate(from_numpy(lid), from_numpy(stderr), float("nan"), "")
