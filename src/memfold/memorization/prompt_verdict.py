"""One score from several signals, on the scale of ordinary prompts; and its p-value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from memfold.types import InputError

VERDICT = "verdict"
SIGNALS = ("cfg_norm", "freedom_taken_loss", "loss_conditional", "tiled_l2")
LEAST = 10  # ordinary prompts that set a scale
_MAD = 1.4826  # standard deviation of a normal variable over its median absolute deviation


def standards(
    reference: Mapping[str, Float[ndarray, "n images"]],
) -> dict[str, tuple[float, float]]:
    """Find the centre and the spread of each signal over ordinary prompts.

    Args:
        reference: scores of ordinary prompts by detector, shape (prompts, images).

    Returns:
        Median and 1.4826 times the median absolute deviation of the prompts' mean scores.

    Raises:
        InputError: too few prompts, or no signal among the scores.
    """
    found = {}
    for name in SIGNALS:
        if name in reference:
            mean = np.asarray(reference[name], dtype=float).mean(1)
            if len(mean) < LEAST:
                raise InputError(
                    f"{len(mean)} ordinary prompts are too few to set a scale; pass {LEAST} or more"
                )
            centre = float(np.median(mean))
            spread = float(_MAD * np.median(np.abs(mean - centre)))
            found[name] = (centre, max(spread, 1e-12))
    if not found:
        raise InputError(f"the verdict needs one of the detectors {', '.join(SIGNALS)}")
    return found


def combine(
    scores: Mapping[str, Float[ndarray, "n images"]], standard: Mapping[str, tuple[float, float]]
) -> Float[ndarray, "n images"]:
    """Average the standardised signals, each through arsinh: asinh((score - centre) / spread).

    arsinh is linear near 0 and logarithmic far out, so that no signal outvotes the others: a
    memorized prompt shows in all of them, while a prompt some of whose seeds fall onto a memorized
    image can stand 20 spreads out in one.

    Args:
        scores: scores by detector, shape (prompts, images).
        standard: from `standards`.

    Returns:
        One score an image; arsinh of robust standard deviations of ordinary prompts.
    """
    parts = [(np.asarray(scores[n], dtype=float) - c) / s for n, (c, s) in standard.items()]
    return np.mean(np.arcsinh(parts), axis=0)


def p_values(score: ArrayLike, ordinary: ArrayLike) -> Float[ndarray, " n"]:
    """Conformal p-values: the share of ordinary prompts that score as high, itself counted.

    Exact where a prompt that is not memorized is exchangeable with the ordinary ones (Vovk et al.
    2005): then p <= alpha happens with probability at most alpha.

    Args:
        score: scores of the prompts to judge, large for memorized ones, shape (n,).
        ordinary: scores of ordinary prompts, shape (m,).

    Returns:
        p-values in [1 / (m + 1), 1], shape (n,).

    Raises:
        InputError: there are no ordinary prompts, or a score is not finite.
    """
    s, base = np.asarray(score, dtype=float), np.sort(np.asarray(ordinary, dtype=float))
    if not len(base) or not (np.isfinite(s).all() and np.isfinite(base).all()):
        raise InputError("p-values need finite scores and at least one ordinary prompt")
    above = len(base) - np.searchsorted(base, s, side="left")
    return (1 + above) / (1 + len(base))


def own_p_values(score: ArrayLike, judged: ArrayLike) -> Float[ndarray, " n"]:
    """p-values of prompts that are themselves among the judged: the share that scores as high.

    Args:
        score: scores of some of the judged prompts, shape (n,).
        judged: scores of all of them, shape (m,).

    Returns:
        p-values in [1 / m, 1], shape (n,).

    Raises:
        InputError: there are no prompts, or a score is not finite.
    """
    m = len(np.atleast_1d(np.asarray(judged)))
    return np.clip(p_values(score, judged) * (m + 1) / m - 1 / m, 1 / m, 1.0)
