"""What the verdict compares: subjects with a reference, and why a comparison may mean nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray
from torch import Tensor

from memfold.memorization.conformal import Calibration, calibrate
from memfold.types import Estimate, InputError

_RARE = 0.01  # share of held-out images that may be declared unfit, or noisier than the rest
_CLEAR = 4  # standard errors that settle a call where the estimate is noisy
_OUTLIER = 3.5  # robust z-score of an outlier (Iglewicz and Hoaglin 1993)


@dataclass(frozen=True)
class Comparison:
    """Complexity of m subjects and n reference images; the subjects' rows among the latter."""

    z: ndarray
    reference_z: ndarray
    index: ndarray

    @staticmethod
    def of(
        model: Estimate,
        reference: Estimate,
        complexity: Any = None,
        reference_complexity: Any = None,
        index: Any = None,
    ) -> Comparison:
        """Check the shapes of what is compared, and that the subjects' rows are their own."""
        m, n = len(model.lid), len(reference.lid)
        if (complexity is None) != (reference_complexity is None):
            raise InputError("complexity is needed of both subjects and reference, or of none")
        if complexity is None:
            complexity, reference_complexity = np.empty((m, 0)), np.empty((n, 0))
        z, others = array(complexity), array(reference_complexity)
        if z.ndim != 2 or z.shape != (m, others.shape[-1]) or len(others) != n:
            raise InputError(
                f"complexity {z.shape} and reference complexity {others.shape} do not fit {m} "
                f"subjects and {n} reference images: pass (m, p) and (n, p)"
            )
        row = np.full(m, -1) if index is None else array(index, m).astype(int)
        if m and (row.min() < -1 or row.max() >= n):
            raise InputError(f"reference_index must lie in -1 ... {n - 1}, got {row}")
        mine, theirs = array(model.lid)[row >= 0], array(reference.lid)[row[row >= 0]]
        if not np.allclose(mine, theirs, rtol=1e-4, equal_nan=True):
            raise InputError("subjects and their rows of the reference differ: pass one estimate")
        return Comparison(z, others, row)

    def calibrate(self, value: Any, reference: Any) -> Calibration:
        """Calibrate what is finite; the rest comes back as NaN and disturbs nothing."""
        y, others = array(value, len(self.z)), array(reference, len(self.reference_z))
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

    def unfit(self, misfit: Any, reference_misfit: Any) -> ndarray:
        """Whether the model fits each subject worse than 99 of 100 reference images."""
        if (misfit is None) != (reference_misfit is None):
            raise InputError("misfit is needed of both subjects and reference, or of none")
        if misfit is None:
            return np.zeros(len(self.z), bool)
        return self.large(misfit, reference_misfit)

    def large(self, value: Any, reference: Any) -> ndarray:
        """Whether a number is larger than in 99 of 100 reference images of this complexity."""
        upper = self.calibrate(-array(value), -array(reference))
        return ~(upper.p_value > np.maximum(_RARE, upper.smallest))


def doubts(
    compared: Comparison,
    theta: Calibration,
    model: Estimate,
    reference: Estimate,
    called: ndarray,
    unfit: ndarray,
    alpha: float,
) -> Shaped[ndarray, " m"]:
    """The first reason that applies not to trust each comparison; empty where none does."""
    lid, stderr, others = array(model.lid), array(model.stderr), array(reference.lid)
    missing = theta.expected - lid
    floor = min(0.0, float(np.nanmin(others)))
    blind = compared.calibrate(np.full_like(lid, floor), others).p_value > alpha
    lowest = ~called & (theta.p_value <= theta.smallest + 1e-12)
    tests = np.isfinite(theta.p_value).sum()
    needed = ceil(tests / (alpha * max(1, lowest.sum()))) - 1
    centre = np.median(theta.reference_score)
    width = 1.4826 * np.median(abs(theta.reference_score - centre))
    noisy = stderr > theta.spread
    if noisy.any():
        noisy = noisy & compared.large(stderr, reference.stderr)
    outlier = -missing / theta.spread < centre - _OUTLIER * width
    reasons = {
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
            lowest & (compared.index >= 0)
        ),
        f"reference too small: at least {needed} images are needed": lowest
        | (theta.smallest > alpha),
        "far below most of the reference, as other images in it are: "
        "free it of training images or enlarge it": ~called & outlier & (width > 0),
        "so simple an image would not stand out at LID 0": ~called & blind,
    }
    return np.select(list(reasons.values()), list(reasons), default="")


def array(values: Any, size: int | None = None) -> ndarray:
    """As a float64 array (never written into), of the given length."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64)
    a = np.asarray(values, dtype=np.float64)
    if size is not None and a.shape != (size,):
        raise InputError(f"expected one number for each of {size} images, got shape {a.shape}")
    return a
