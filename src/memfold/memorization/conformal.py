"""Conformal calibration of a number against a reference population of exchangeable images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
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
    (value - prediction) / spread, where all other rows predict the value, and the size of its
    error, by least squares weighted with 1 / spread^2; p = (1 + #{i: score_i <= score}) / (n + 1).
    All rows are treated alike, so that P(p <= a) <= a for every a if subject and reference are
    exchangeable, however wrong the regression is (Vovk, Gammerman, Shafer 2005; Lei et al. 2018).

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
    index = np.full(len(value), -1) if reference_index is None else np.asarray(reference_index)
    inside, row = index >= 0, index[index >= 0]
    p, outside = np.empty(len(value)), np.flatnonzero(~inside)
    for start in range(0, len(outside), _CHUNK):
        part = outside[start : start + _CHUNK]
        score, _, _ = _scores(z, reference, new_z[part], value[part])
        p[part] = (score <= score[:, -1:] + _TIE).mean(1)
    nobody = np.zeros((1, z.shape[1])), np.zeros(1)  # a row of zeros takes part in no fit
    own, own_spread, predicted = (a[0, :-1] for a in _scores(z, reference, *nobody))
    size = abs(reference - predicted)
    (expected, usual), covariance = _at(new_z, z, own, own_spread, reference, size)
    spread = np.maximum(usual, _FLOOR * size.mean())
    p[inside] = (own <= own[row, None] + _TIE).mean(1)
    expected[inside], spread[inside] = predicted[row], own_spread[row]
    unit, gram = np.sqrt(np.mean(own**2)), np.linalg.inv(z.T @ z)
    return Calibration(
        p_value=p,
        expected=expected,
        expected_stderr=np.sqrt(_quadratic(new_z, covariance)),
        spread=spread * unit,
        leverage=_quadratic(new_z, gram),
        smallest=1 / (len(reference) + ~inside),
        reference_score=own / unit if unit > 0 else own,
        reference_leverage=_quadratic(z, gram),
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
    z: ndarray, y: ndarray, new_z: ndarray, new_y: ndarray
) -> tuple[ndarray, ndarray, ndarray]:
    """Scores, spreads and predictions (c, n + 1) of the reference and, last, the subject."""
    values = _join(np.broadcast_to(y, (len(new_y), len(y))), new_y)
    tiny = _TIE * (1 + abs(values).max(1, keepdims=True))
    spread = np.ones_like(values)
    for _ in range(2):  # first without weights, then with those of the first
        predict = _deleting(z, new_z, spread**-2)
        predicted = predict(values)
        size = abs(values - predicted)
        floor = _FLOOR * size.mean(1, keepdims=True) + tiny
        spread = np.maximum(predict(size), floor)
    return (values - predicted) / spread, spread, predicted


def _deleting(z: ndarray, new_z: ndarray, weight: ndarray) -> Callable[[ndarray], ndarray]:
    """Least squares of weight (c, n + 1) on the reference's rows z and one subject's row each.

    Returns the map from values (c, n + 1) to the prediction of each by all others of its data
    set: y_i - r_i / (1 - h_i), with residual r_i and leverage h_i.
    """
    square, new_square = (np.einsum("kq,kr->kqr", r, r).reshape(len(r), -1) for r in (z, new_z))
    gram = weight[:, :-1] @ square + weight[:, -1:] * new_square
    inverse = np.linalg.inv(gram.reshape(len(new_z), *2 * z.shape[1:]))
    flat = inverse.reshape(gram.shape)
    kept = 1 - weight * _join(flat @ square.T, (flat * new_square).sum(1))
    np.maximum(kept, _TIE, out=kept)

    def predict(y: ndarray) -> ndarray:
        moment = (weight * y)[:, :-1] @ z + (weight * y)[:, -1:] * new_z
        beta = (inverse @ moment[..., None])[..., 0]
        return y - (y - _join(beta @ z.T, (beta * new_z).sum(1))) / kept

    return predict


def _at(
    new_z: ndarray, z: ndarray, score: ndarray, spread: ndarray, *values: ndarray
) -> tuple[list[ndarray], ndarray]:
    """Weighted fits of the reference at new rows, and the covariance of their coefficients.

    The covariance holds for any spread (HC3: MacKinnon and White 1985).
    """
    scaled = z / spread[:, None]
    bread = np.linalg.inv(scaled.T @ scaled)
    half = scaled * score[:, None] @ bread
    fits = [new_z @ (bread @ (scaled.T @ (y / spread))) for y in values]
    return fits, half.T @ half


def _join(reference: ndarray, subject: ndarray) -> ndarray:
    return np.concatenate([reference, subject[:, None]], 1)


def _quadratic(z: ndarray, form: ndarray) -> ndarray:
    return np.einsum("mq,qr,mr->m", z, form, z)


def _rows(
    value: ndarray, reference: ndarray, features: ndarray | None, others: ndarray | None
) -> tuple[ndarray, ndarray]:
    """The design's rows, an intercept and standardised features, of reference and subjects."""
    if (features is None) != (others is None):
        raise InputError("complexity features are needed of both subjects and reference, or none")
    if features is None or others is None:
        features, others = np.empty((len(value), 0)), np.empty((len(reference), 0))
    n, p = others.shape
    if features.shape != (len(value), p) or n != len(reference):
        raise InputError(
            f"features {features.shape} and reference features {others.shape} do not fit "
            f"{len(value)} subjects and {len(reference)} reference images: pass (m, p) and (n, p)"
        )
    centre = others.mean(0) if n else 0
    unit = others.std(0) if n else 1
    unit = np.where(unit > 1e-9 * abs(centre), unit, 1)
    z, new_z = (
        np.concatenate([np.ones((len(f), 1)), (f - centre) / unit], 1) for f in (others, features)
    )
    if n < p + 3 or np.linalg.matrix_rank(z) <= p:
        raise InputError(
            f"a reference of {n} images does not determine a regression on {p} complexity "
            "features: pass more reference images, or drop constant and repeated features"
        )
    return z, new_z
