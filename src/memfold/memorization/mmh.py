"""The verdict: from two LIDs an image and a reference population to a kind of memorization."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor

from memfold.memorization.conformal import Calibration, calibrate, q_values
from memfold.types import Estimate, InputError

_RARE = 0.01  # share of held-out images that may be declared unfit, or noisier than the rest
_CLEAR = 4  # standard errors that settle a call where the estimate is noisy
_OUTLIER = 3.5  # robust z-score of an outlier (Iglewicz and Hoaglin 1993)


@dataclass(frozen=True)
class Verdicts:
    """One verdict for each of m subjects; NaN where nothing could be measured.

    Attributes:
        kind: `overfitting`, `data`, `none` or `undetermined`.
        memorized: called at false-discovery rate alpha, and trusted.
        p_value: conformal p-value of so low a model-side LID at this complexity.
        q_value: its Benjamini-Hochberg adjustment over all subjects.
        p_data: conformal p-value of so low a data-side LID at this complexity.
        expected_lid: model-side LID of an image of this complexity that is not memorized.
        missing_dof: expected_lid minus the observed LID, in degrees of freedom.
        missing_dof_stderr: its standard error: of the estimate, of the regression, and the
            spread of images of equal complexity.
        trusted: whether the comparison means something here.
        reason: why not, or why the kind is undetermined; empty otherwise.
    """

    kind: Shaped[ndarray, " m"]
    memorized: Bool[ndarray, " m"]
    p_value: Float[ndarray, " m"]
    q_value: Float[ndarray, " m"]
    p_data: Float[ndarray, " m"]
    expected_lid: Float[ndarray, " m"]
    missing_dof: Float[ndarray, " m"]
    missing_dof_stderr: Float[ndarray, " m"]
    trusted: Bool[ndarray, " m"]
    reason: tuple[str, ...]


def judge(
    model: Estimate,
    data: Estimate | None = None,
    *,
    reference_model: Estimate,
    reference_data: Estimate | None = None,
    complexity: ArrayLike | Tensor | None = None,
    reference_complexity: ArrayLike | Tensor | None = None,
    misfit: ArrayLike | Tensor | None = None,
    reference_misfit: ArrayLike | Tensor | None = None,
    reference_index: ArrayLike | Tensor | None = None,
    alpha: float = 0.05,
) -> Verdicts:
    """Judge m subjects against n images that the model cannot have memorized.

    Too low a model-side LID for the complexity, after Benjamini-Hochberg at alpha, is memorized:
    by the data where the data-side LID is too low as well, by overfitting where it is not (Ross
    et al. 2025). The rule, its assumptions and when it fails: docs/verdict.md.

    Args:
        model: model-side LID of the subjects.
        data: data-side LID of the subjects; without it kinds stay undetermined.
        reference_model: model-side LID of the reference, measured in the same way.
        reference_data: data-side LID of the reference.
        complexity: covariates (m, p) of the images alone: `complexity.features(x, sigma)`.
        reference_complexity: the same (n, p) of the reference.
        misfit: a number (m,) that is large where the model does not fit.
        reference_misfit: the same (n,) of the reference.
        reference_index: row (m,) of a subject in the reference, -1 for one that is not in it.
        alpha: false-discovery rate.

    Raises:
        InputError: shapes disagree, one of a pair is missing, or the reference is degenerate.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}: pass 0.05, say")
    bench = _bench(model, reference_model, complexity, reference_complexity, reference_index)
    theta = bench.calibrate(model.lid, reference_model.lid)
    q = q_values(theta.p_value)
    called = q <= alpha
    if (misfit is None) != (reference_misfit is None):
        raise InputError("misfit is needed of both subjects and reference, or of none")
    unfit = np.zeros(len(q), bool) if misfit is None else bench.large(misfit, reference_misfit)
    reason = _doubts(bench, theta, model, reference_model, called, unfit, alpha)
    memorized = called & (reason == "")
    p_data, low, unknown = _data_side(bench, data, reference_data, alpha)
    kind = np.where(low, "data", "overfitting")
    kind = np.where(unknown == "", kind, "undetermined")
    error = _array(model.stderr) ** 2 + theta.expected_stderr**2 + theta.spread**2
    return Verdicts(
        kind=np.where(memorized, kind, np.where(reason == "", "none", "undetermined")),
        memorized=memorized,
        p_value=theta.p_value,
        q_value=q,
        p_data=p_data,
        expected_lid=theta.expected,
        missing_dof=theta.expected - _array(model.lid),
        missing_dof_stderr=np.sqrt(error),
        trusted=reason == "",
        reason=tuple(np.where(memorized, unknown, reason).tolist()),
    )


@dataclass(frozen=True)
class _Bench:
    """Complexity of m subjects and n reference images; the subjects' rows among the latter."""

    z: ndarray
    reference_z: ndarray
    index: ndarray

    def calibrate(self, value: Any, reference: Any) -> Calibration:
        """Calibrate what is finite; the rest comes back as NaN and disturbs nothing."""
        y, others = _array(value, len(self.z)), _array(reference, len(self.reference_z))
        ok = np.isfinite(y) & np.isfinite(self.z).all(1)
        sound = np.isfinite(others) & np.isfinite(self.reference_z).all(1)
        row = np.where(sound, np.cumsum(sound) - 1, -1)
        part = calibrate(
            y[ok],
            others[sound],
            features=self.z[ok],
            reference_features=self.reference_z[sound],
            reference_index=np.where(self.index < 0, -1, row[self.index])[ok],
        )
        full = {f.name: np.full(len(y), np.nan) for f in fields(part)}
        for name in full:
            if name.startswith("reference"):
                full[name] = getattr(part, name)
            else:
                full[name][ok] = getattr(part, name)
        return Calibration(**full)

    def large(self, value: Any, reference: Any) -> ndarray:
        """Whether a number is larger than in 99 of 100 reference images of this complexity."""
        upper = self.calibrate(-_array(value), -_array(reference))
        return ~(upper.p_value > np.maximum(_RARE, upper.smallest))


def _doubts(
    bench: _Bench,
    theta: Calibration,
    model: Estimate,
    reference: Estimate,
    called: ndarray,
    unfit: ndarray,
    alpha: float,
) -> Shaped[ndarray, " m"]:
    """The first reason that applies not to trust each comparison; empty where none does."""
    lid, stderr, others = _array(model.lid), _array(model.stderr), _array(reference.lid)
    missing = theta.expected - lid
    floor = min(0.0, float(np.nanmin(others)))
    blind = bench.calibrate(np.full_like(lid, floor), others).p_value > alpha
    lowest = ~called & (theta.p_value <= theta.smallest + 1e-12)
    tests = np.isfinite(theta.p_value).sum()
    needed = ceil(tests / (alpha * max(1, lowest.sum()))) - 1
    centre = np.median(theta.reference_score)
    width = 1.4826 * np.median(abs(theta.reference_score - centre))
    noisy = stderr > theta.spread
    if noisy.any():
        noisy = noisy & bench.large(stderr, reference.stderr)
    outlier = -missing / theta.spread < centre - _OUTLIER * width
    doubts = {
        "the estimate, its standard error or the complexity is not finite": ~np.isfinite(
            theta.p_value + stderr
        ),
        "the model does not fit here": unfit,
        "complexity outside the range of the reference": (
            theta.leverage > theta.reference_leverage.max() * (1 + 1e-9)
        ),
        "standard error too large: take more noises or probes": (
            noisy & (missing < _CLEAR * stderr)
        ),
        "lowest of its own population: judge fewer subjects or take held-out images": (
            lowest & (bench.index >= 0)
        ),
        f"reference too small: at least {needed} images are needed": lowest
        | (theta.smallest > alpha),
        "far below most of the reference, as other images in it are: "
        "free it of training images or enlarge it": ~called & outlier & (width > 0),
        "so simple an image would not stand out at LID 0": ~called & blind,
    }
    return np.select(list(doubts.values()), list(doubts), default="")


def _data_side(
    bench: _Bench, data: Estimate | None, reference: Estimate | None, alpha: float
) -> tuple[ndarray, ndarray, ndarray]:
    """p-values of the data-side LID, whether it is low, and why that cannot be told."""
    size = len(bench.z)
    if (data is None) != (reference is None):
        raise InputError("data-side estimates are needed of both subjects and reference, or none")
    if data is None or reference is None:
        absent = np.full(size, "memorized; without data-side estimates the kind is unknown")
        return np.full(size, np.nan), np.zeros(size, bool), absent
    star = bench.calibrate(data.lid, reference.lid)
    lid, stderr = _array(data.lid), _array(data.stderr)
    nothing = lid + 2 * stderr < np.minimum(1, star.expected / 2)
    low = (star.p_value <= alpha) | nothing
    unknown = {
        "memorized; the data-side estimate is not finite": ~np.isfinite(star.p_value + stderr),
        "": low,
        "memorized; the data-side standard error is too large": lid <= 2 * stderr,
        "memorized; the reference is too small for the data side": star.smallest > alpha,
    }
    return star.p_value, low, np.select(list(unknown.values()), list(unknown), default="")


def _bench(
    model: Estimate, reference: Estimate, complexity: Any, reference_complexity: Any, index: Any
) -> _Bench:
    m, n = len(model.lid), len(reference.lid)
    if (complexity is None) != (reference_complexity is None):
        raise InputError("complexity is needed of both subjects and reference, or of none")
    if complexity is None:
        complexity, reference_complexity = np.empty((m, 0)), np.empty((n, 0))
    z, others = _array(complexity), _array(reference_complexity)
    if z.ndim != 2 or z.shape != (m, others.shape[-1]) or len(others) != n:
        raise InputError(
            f"complexity {z.shape} and reference complexity {others.shape} do not fit {m} "
            f"subjects and {n} reference images: pass (m, p) and (n, p)"
        )
    row = np.full(m, -1) if index is None else _array(index, m).astype(int)
    if m and (row.min() < -1 or row.max() >= n):
        raise InputError(f"reference_index must lie in -1 ... {n - 1}, got {row}")
    mine, theirs = _array(model.lid)[row >= 0], _array(reference.lid)[row[row >= 0]]
    if not np.allclose(mine, theirs, rtol=1e-4, equal_nan=True):
        raise InputError("subjects and their rows of the reference differ: pass one estimate")
    return _Bench(z, others, row)


def _array(values: Any, size: int | None = None) -> ndarray:
    """As a float64 array (never written into), of the given length."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64)
    a = np.asarray(values, dtype=np.float64)
    if size is not None and a.shape != (size,):
        raise InputError(f"expected one number for each of {size} images, got shape {a.shape}")
    return a
