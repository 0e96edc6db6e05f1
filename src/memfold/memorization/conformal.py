"""Conformal calibration of a number against a reference population of exchangeable images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num
from numpy import ndarray
from scipy.stats import binomtest, false_discovery_control

from memfold.types import InputError

_TIE = 1e-6  # scores closer than this (in units of the spread) count as equal
_FLOOR = 0.25  # the fitted spread is never below this share of its average
_CHUNK = 256  # subjects worked on at a time: memory of chunk x reference


@dataclass(frozen=True)
class Calibration:
    """What the reference population says about each of m subjects.

    Attributes:
        p_value: lower-tail conformal p-value, in (0, 1].
        expected: the value expected of an image of this complexity.
        expected_stderr: standard error of that expectation (the regression's own uncertainty).
        spread: standard deviation of the reference around its expectation, at this complexity.
        leverage: how far the subject's complexity lies from the reference's.
        smallest: the smallest p-value that the subject could have had.
        reference_score: the n reference images' own (value - expected) / spread.
        reference_leverage: the n reference images' own leverage.
    """

    p_value: Float[ndarray, " m"]
    expected: Float[ndarray, " m"]
    expected_stderr: Float[ndarray, " m"]
    spread: Float[ndarray, " m"]
    leverage: Float[ndarray, " m"]
    smallest: Float[ndarray, " m"]
    reference_score: Float[ndarray, " n"]
    reference_leverage: Float[ndarray, " n"]


@dataclass(frozen=True)
class _Design:
    """Least squares on the reference: rows z (n, q), gram = (z'z)^-1, leverages h (n,)."""

    z: ndarray
    gram: ndarray
    h: ndarray

    def deleted(self, y: ndarray, new_z: ndarray, new_y: ndarray) -> tuple[ndarray, ndarray]:
        """Residual of each row when all others, the subject's included, predict it.

        y (n,) or (c, n) holds the reference's values for each of c subjects. The subject's row is
        added by a rank-one update (Sherman and Morrison 1950); r_i / (1 - h_i) deletes a row.
        Returns the residuals of the reference (c, n) and of the subjects (c,).
        """
        cross = new_z @ self.gram @ self.z.T
        shrink = 1 / (1 + _quadratic(new_z, self.gram))[:, None]
        beta = y @ self.z @ self.gram
        new_residual = new_y - (new_z * beta).sum(-1)
        residual = y - beta @ self.z.T - cross * shrink * new_residual[:, None]
        leverage = self.h - cross**2 * shrink
        return residual / np.maximum(1 - leverage, _TIE), new_residual


def calibrate(
    value: Float[ndarray, " m"],
    reference: Float[ndarray, " n"],
    *,
    features: Float[ndarray, "m p"] | None = None,
    reference_features: Float[ndarray, "n p"] | None = None,
    reference_index: Int[ndarray, " m"] | None = None,
) -> Calibration:
    """Full conformal p-values of low values, given features, by least squares.

    For each subject alone the reference is augmented with it. Every row then gets the score
    (value - prediction) / spread, where all other rows predict both, and
    p = (1 + #{i: score_i <= score of the subject}) / (n + 1). Rows are treated alike, so that
    P(p <= a) <= a for every a if subject and reference are exchangeable, whatever the truth of
    the regression (Vovk, Gammerman, Shafer 2005; Lei et al. 2018).

    Args:
        value: the subjects' values, finite.
        reference: the reference population's values, finite.
        features: covariates of the subjects, none for a plain rank test.
        reference_features: the same covariates of the reference.
        reference_index: for a subject that is itself a row of the reference, that row's number,
            else -1. Such a subject is ranked within the n rows: p = #{score_i <= score} / n.

    Raises:
        InputError: shapes disagree, or the reference does not determine the regression.
    """
    z, new_z = _rows(value, reference, features, reference_features)
    design = _design(z)
    p, expected, spread = np.empty((3, len(value)))
    for start in range(0, len(value), _CHUNK):
        part = slice(start, start + _CHUNK)
        score, scale, residual = _scores(design, reference, new_z[part], value[part])
        p[part] = (score <= score[:, -1:] + _TIE).mean(1)
        expected[part], spread[part] = value[part] - residual, scale[:, -1]
    own, own_spread, residual = _own(design, reference)
    index = np.full(len(value), -1) if reference_index is None else np.asarray(reference_index)
    inside, row = index >= 0, index[index >= 0]
    p[inside] = (own <= own[row, None] + _TIE).mean(1)
    expected[inside], spread[inside] = (reference - residual)[row], own_spread[row]
    unit = np.sqrt(np.mean(own**2))
    return Calibration(
        p_value=p,
        expected=expected,
        expected_stderr=np.sqrt(_quadratic(new_z, _sandwich(design, residual))),
        spread=spread * unit,
        leverage=_quadratic(new_z, design.gram),
        smallest=1 / (len(reference) + ~inside),
        reference_score=own / unit if unit > 0 else own,
        reference_leverage=design.h,
    )


def q_values(p: Float[ndarray, " m"]) -> Float[ndarray, " m"]:
    """Benjamini-Hochberg adjusted p-values; NaN stays NaN and does not count as a test.

    Conformal p-values that share one reference are positively dependent, and the procedure then
    controls the false-discovery rate (Bates et al. 2023, for a fixed score function).
    """
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q


def share_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval for a share; (0, 1) when nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    low, high = binomtest(hits, trials).proportion_ci(level, method="exact")
    return float(low), float(high)


def _scores(
    design: _Design, reference: ndarray, new_z: ndarray, new_y: ndarray
) -> tuple[ndarray, ndarray, ndarray]:
    """Scores and spreads (c, n + 1), the subject last, and the subjects' residuals (c,)."""
    residual, new_residual = design.deleted(reference, new_z, new_y)
    size, new_size = abs(residual), abs(new_residual)
    off, new_off = design.deleted(size, new_z, new_size)
    residual = np.concatenate([residual, new_residual[:, None]], 1)
    size = np.concatenate([size, new_size[:, None]], 1)
    spread = size - np.concatenate([off, new_off[:, None]], 1)
    tiny = _TIE * (1 + np.maximum(abs(reference).max(), abs(new_y)))[:, None]
    spread = np.maximum(spread, _FLOOR * size.mean(1, keepdims=True) + tiny)
    return residual / spread, spread, new_residual


def _own(design: _Design, reference: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Scores, spreads and deleted residuals (n,) of the reference alone: a row of zeros is none."""
    score, spread, _ = _scores(design, reference, np.zeros((1, design.z.shape[1])), np.zeros(1))
    return score[0, :-1], spread[0, :-1], score[0, :-1] * spread[0, :-1]


def _quadratic(z: ndarray, form: ndarray) -> ndarray:
    return np.einsum("mq,qr,mr->m", z, form, z)


def _sandwich(design: _Design, residual: ndarray) -> ndarray:
    """Covariance of the coefficients, whatever the spread (HC3: MacKinnon and White 1985)."""
    bread = design.gram @ (design.z * residual[:, None]).T
    return bread @ bread.T


def _design(z: ndarray) -> _Design:
    n, q = z.shape
    if n < q + 2 or np.linalg.matrix_rank(z) < q:
        raise InputError(
            f"a reference of {n} images does not determine a regression on {q - 1} complexity "
            "features: pass more reference images, or drop constant and repeated features"
        )
    gram = np.linalg.inv(z.T @ z)
    return _Design(z, gram, _quadratic(z, gram))


def _rows(
    value: ndarray, reference: ndarray, features: ndarray | None, others: ndarray | None
) -> tuple[ndarray, ndarray]:
    """The design's rows, an intercept and standardised features, of reference and subjects."""
    if (features is None) != (others is None):
        raise InputError("complexity features are needed of both subjects and reference, or none")
    if features is None or others is None:
        return np.ones((len(reference), 1)), np.ones((len(value), 1))
    if features.shape != (len(value), others.shape[-1]) or len(others) != len(reference):
        raise InputError(
            f"features {features.shape} and reference features {others.shape} do not fit "
            f"{len(value)} subjects and {len(reference)} reference images: pass (m, p) and (n, p)"
        )
    centre, unit = others.mean(0), others.std(0)
    unit = np.where(unit > 0, unit, 1)
    rows: list[Num[ndarray, "k q"]] = [
        np.concatenate([np.ones((len(f), 1)), (f - centre) / unit], 1) for f in (others, features)
    ]
    return rows[0], rows[1]
