"""The band of ordinary prompts: a limit on a running score, simultaneous over the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from memfold.types import InputError

_MAD = 1.4826  # standard deviation of a normal variable over its median absolute deviation
_SLACK = 0.05  # relative room at the ends of the calibrated noise levels


@dataclass(frozen=True)
class Band:
    """How high a score may be at each noise level, at a wanted false-positive rate for whole runs.

    Attributes:
        score: name of the monitor's score.
        sigmas: noise standard deviations of the calibrated steps, ascending.
        centre: median of ordinary runs at each.
        scale: spread of ordinary runs at each.
        threshold: limit on (score - centre) / scale at every step at once.
        alpha: wanted false-positive rate of a run.
        n: ordinary runs that it was fitted to.
        conditions: what the runs had in common: pipeline, guidance, model's digest, version.
    """

    score: str
    sigmas: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    threshold: float
    alpha: float
    n: int
    conditions: Mapping[str, Any]

    def limit(self, sigma: float) -> float:
        """Give the largest score that is not called at a noise level, interpolated in log sigma.

        Args:
            sigma: noise standard deviation.

        Returns:
            The limit, in units of the score.

        Raises:
            InputError: the band was not calibrated there.
        """
        low, high = self.sigmas[0] * (1 - _SLACK), self.sigmas[-1] * (1 + _SLACK)
        if not low <= sigma <= high:
            raise InputError(
                f"sigma = {sigma:.4g} lies outside the calibrated {self.sigmas[0]:.4g} to "
                f"{self.sigmas[-1]:.4g}; calibrate with the number of steps that you use"
            )
        at, logs = np.log(sigma), np.log(self.sigmas)
        centre, scale = np.interp(at, logs, self.centre), np.interp(at, logs, self.scale)
        return float(centre + self.threshold * scale)

    def fires(self, sigma: float, score: float) -> bool:
        """Tell whether a score leaves the band at a noise level."""
        return bool(score > self.limit(sigma))

    def save(self, path: str | Path) -> None:
        """Write the band as JSON."""
        text = json.dumps({"memfold": "band", **asdict(self)}, indent=1)
        Path(path).write_text(text, encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Band:
        """Read a band.

        Args:
            path: what `save` or `memfold calibrate` wrote.

        Returns:
            The band.

        Raises:
            InputError: it is missing, or no band.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("memfold") != "band":
                raise InputError(f"{path} is no band; write it with memfold calibrate")
            lists = {k: tuple(float(v) for v in found[k]) for k in ("sigmas", "centre", "scale")}
            return Band(**found | lists)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); write it with memfold calibrate"
            ) from error
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no band; write it with memfold calibrate") from error


def fit_band(
    runs: Float[ndarray, "n steps"],
    sigmas: Float[ndarray, " steps"],
    *,
    alpha: float = 0.01,
    score: str = "cfg_norm",
    conditions: Mapping[str, Any] | None = None,
) -> Band:
    """Fit the band to ordinary runs.

    M_i is the largest of (score - centre) / scale over the steps of run i, with median and median
    absolute deviation of the other runs; the threshold is the ceil((n + 1)(1 - alpha))-th smallest
    M_i. A new run that is exchangeable with these leaves the band with probability at most about
    alpha, whatever the dependence between the steps (Vovk et al. 2005; centre and scale of a new
    run are those of all n, which differ from the leave-one-out ones by order 1 / n).

    Args:
        runs: scores of ordinary runs, a row a run.
        sigmas: noise standard deviation of each step.
        alpha: wanted false-positive rate of a run.
        score: what the scores are.
        conditions: what the runs had in common.

    Returns:
        The band.

    Raises:
        InputError: too few runs for this rate, or scores that are not finite.
    """
    table, sigma = np.asarray(runs, dtype=float), np.asarray(sigmas, dtype=float)
    if not 0 < alpha < 1:
        raise InputError(f"alpha = {alpha}; choose a rate between 0 and 1, such as 0.01")
    n = len(table)
    rank = ceil((n + 1) * (1 - alpha) - 1e-9)
    if rank > n or n < 10:
        need = max(ceil(1 / alpha) - 1, 10)
        raise InputError(f"{n} ordinary runs are too few for alpha = {alpha}; give {need} or more")
    if not np.isfinite(table).all():
        raise InputError(
            "a score of the ordinary runs is NaN or infinite; the run had no guidance?"
        )
    largest = np.empty(n)
    for i in range(n):
        centre, scale = _location(np.delete(table, i, axis=0))
        largest[i] = ((table[i] - centre) / scale).max()
    centre, scale = _location(table)
    order = np.argsort(sigma)
    return Band(
        score=score,
        sigmas=tuple(sigma[order].tolist()),
        centre=tuple(centre[order].tolist()),
        scale=tuple(scale[order].tolist()),
        threshold=float(np.sort(largest)[rank - 1]),
        alpha=alpha,
        n=n,
        conditions=dict(conditions or {}),
    )


def _location(table: ndarray) -> tuple[ndarray, ndarray]:
    centre = np.median(table, axis=0)
    spread = _MAD * np.median(np.abs(table - centre), axis=0)
    return centre, np.maximum(spread, 1e-9 * np.maximum(np.abs(centre), 1.0))
