"""How good a detector is, in honest numbers: nothing interpolated, nothing flipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from memfold.memorization.conformal import share_interval
from memfold.tensors import base_seed
from memfold.types import InputError

KINDS = ("overfitting", "data", "none", "undetermined")


@dataclass(frozen=True)
class Share:
    """A share `hits / trials` with its Clopper-Pearson 95 % interval; NaN if nothing was tried."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.trials if self.trials else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval (Clopper and Pearson 1934)."""
        return share_interval(self.hits, self.trials)


@dataclass(frozen=True)
class Comparison:
    """Verdicts against the truth.

    Attributes:
        confusion: `confusion[truth][kind]` counts images.
        precision: of those called a kind, the share that is of it.
        recall: of those that are of a kind, the share called so; `undetermined` is a miss.
    Both have the entry `memorized` too: overfitting and data taken together.
    """

    confusion: dict[str, dict[str, int]]
    precision: dict[str, Share]
    recall: dict[str, Share]


def compare(kinds: Sequence[str] | ndarray, truth: Sequence[str] | ndarray) -> Comparison:
    """Compare verdicts with the truth, kind by kind.

    Args:
        kinds: verdicts, each one of `KINDS`.
        truth: true kinds, each `overfitting`, `data` or `none`.

    Raises:
        InputError: lengths differ, or a kind is unknown.
    """
    called, true = np.asarray(kinds, dtype=str), np.asarray(truth, dtype=str)
    if called.shape != true.shape:
        raise InputError(f"{called.size} verdicts and {true.size} truths: pass one of each")
    unknown = sorted((set(called.tolist()) - set(KINDS)) | (set(true.tolist()) - set(KINDS[:3])))
    if unknown:
        raise InputError(f"unknown kinds {unknown}: verdicts are {KINDS}, truths {KINDS[:3]}")
    groups = {k: {k} for k in KINDS[:3]} | {"memorized": {"overfitting", "data"}}
    precision, recall = {}, {}
    for name, members in groups.items():
        said, is_so = np.isin(called, list(members)), np.isin(true, list(members))
        hits = int((said & is_so).sum())
        precision[name] = Share(hits, int(said.sum()))
        recall[name] = Share(hits, int(is_so.sum()))
    confusion = {t: {k: int(((true == t) & (called == k)).sum()) for k in KINDS} for t in KINDS[:3]}
    return Comparison(confusion, precision, recall)


def roc(
    score: ArrayLike, positive: ArrayLike
) -> tuple[Float[ndarray, " t"], Float[ndarray, " t"], Float[ndarray, " t"]]:
    """False- and true-positive rates of `score >= threshold`, and the thresholds, descending.

    The score is large for the positive class; pass -LID for a LID. Ties move together.

    Raises:
        InputError: a score is not finite, or one of the classes is missing.
    """
    s, y = _scored(score, positive)
    threshold = np.append(np.inf, np.unique(s)[::-1])
    fpr, tpr = ((len(c) - np.searchsorted(np.sort(c), threshold)) / len(c) for c in (s[~y], s[y]))
    return fpr, tpr, threshold


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties counted half; below 1/2 stays so."""
    s, y = _scored(score, positive)
    positives, negatives = y.sum(), (~y).sum()
    below = rankdata(s)[y].sum() - positives * (positives + 1) / 2  # Mann and Whitney 1947
    return float(below / (positives * negatives))


def tpr_at_fpr(score: ArrayLike, positive: ArrayLike, fpr: float = 0.01) -> float:
    """Largest true-positive rate that any threshold reaches at a false-positive rate <= fpr."""
    false, true, _ = roc(score, positive)
    return float(true[false <= fpr].max())


def bootstrap(
    statistic: Callable[[ndarray, ndarray], float],
    score: ArrayLike,
    positive: ArrayLike,
    family: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Percentile interval of statistic(score, positive) over resampled families.

    Near-duplicate images or prompts are one family and are drawn together, within the class of
    their first member, so that no resample loses a class (Efron and Tibshirani 1993).

    Args:
        statistic: `auroc`, `tpr_at_fpr`, or a function like them.
        score: the scores, large for the positive class.
        positive: the class of each.
        family: a label of each one's family; none for each on its own.
        resamples: how often to draw.
        level: coverage of the interval.
        generator: source of randomness.

    Raises:
        InputError: a score is not finite, or one of the classes is missing.
    """
    s, y = _scored(score, positive)
    label = np.arange(len(s)) if family is None else np.asarray(family)
    _, first, which = np.unique(label, return_index=True, return_inverse=True)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    strata = [np.flatnonzero(y[first] == c) for c in (False, True)]
    if not all(len(stratum) for stratum in strata):
        raise InputError("each class needs a family of its own to be resampled")
    rng = np.random.default_rng(base_seed(generator))
    values = []
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        rows = np.concatenate([members[i] for i in drawn])
        values.append(statistic(s[rows], y[rows]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def calibration(p_value: ArrayLike, levels: Sequence[float] = (0.01, 0.05, 0.1)) -> list[Share]:
    """Share of null p-values at or below each level; a valid p-value has at most the level."""
    p = np.asarray(p_value, dtype=float)
    p = p[np.isfinite(p)]
    return [Share(int((p <= level).sum()), len(p)) for level in levels]


def _scored(score: ArrayLike, positive: ArrayLike) -> tuple[ndarray, ndarray]:
    s, y = np.asarray(score, dtype=float), np.asarray(positive, dtype=bool)
    if s.ndim != 1 or s.shape != y.shape:
        raise InputError(f"scores {s.shape} and classes {y.shape} differ: pass one of each")
    if not np.isfinite(s).all():
        raise InputError(f"{(~np.isfinite(s)).sum()} scores are not finite: leave those images out")
    if y.all() or not y.any():
        raise InputError("both classes are needed: at least one positive and one negative")
    return s, y
