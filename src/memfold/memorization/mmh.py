"""The verdict: from two LIDs an image and a reference population to a kind of memorization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor

from memfold.memorization.comparison import Comparison, array, doubts
from memfold.memorization.conformal import q_values
from memfold.types import Estimate, InputError


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
    compared = Comparison.of(
        model, reference_model, complexity, reference_complexity, reference_index
    )
    theta = compared.calibrate(model.lid, reference_model.lid)
    q = q_values(theta.p_value)
    called = q <= alpha
    unfit = compared.unfit(misfit, reference_misfit)
    reason = doubts(compared, theta, model, reference_model, called, unfit, alpha)
    memorized = called & (reason == "")
    p_data, low, unknown = _data_side(compared, data, reference_data, alpha)
    kind = np.where(low, "data", "overfitting")
    kind = np.where(unknown == "", kind, "undetermined")
    error = array(model.stderr) ** 2 + theta.expected_stderr**2 + theta.spread**2
    return Verdicts(
        kind=np.where(memorized, kind, np.where(reason == "", "none", "undetermined")),
        memorized=memorized,
        p_value=theta.p_value,
        q_value=q,
        p_data=p_data,
        expected_lid=theta.expected,
        missing_dof=theta.expected - array(model.lid),
        missing_dof_stderr=np.sqrt(error),
        trusted=reason == "",
        reason=tuple(np.where(memorized, unknown, reason).tolist()),
    )


def _data_side(
    compared: Comparison, data: Estimate | None, reference: Estimate | None, alpha: float
) -> tuple[ndarray, ndarray, ndarray]:
    """p-values of the data-side LID, whether it is low, and why that cannot be told."""
    size = len(compared.z)
    if (data is None) != (reference is None):
        raise InputError("data-side estimates are needed of both subjects and reference, or none")
    if data is None or reference is None:
        absent = np.full(size, "memorized; without data-side estimates the kind is unknown")
        return np.full(size, np.nan), np.zeros(size, bool), absent
    star = compared.calibrate(data.lid, reference.lid)
    lid, stderr = array(data.lid), array(data.stderr)
    nothing = lid + 2 * stderr < np.minimum(1, star.expected / 2)
    low = (star.p_value <= alpha) | nothing
    unknown = {
        "memorized; the data-side estimate is not finite": ~np.isfinite(star.p_value + stderr),
        "": low,
        "memorized; the data-side standard error is too large": lid <= 2 * stderr,
        "memorized; the reference is too small for the data side": star.smallest > alpha,
    }
    return star.p_value, low, np.select(list(unknown.values()), list(unknown), default="")
