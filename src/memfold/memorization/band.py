"""The band of ordinary prompts: a limit on running scores, simultaneous over steps and scores."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from memfold.files import write_text
from memfold.types import InputError

_MAD = 1.4826  # standard deviation of a normal variable over its median absolute deviation
_ROOM = 1.25  # factor beyond the calibrated noise levels in which the end values are held
_LEAST = 10  # fewer prompts give no centre and no scale


@dataclass(frozen=True)
class Band:
    """How high scores may be at each noise level, at a wanted false-positive rate for whole runs.

    Attributes:
        scores: names of the monitor's scores.
        sigmas: noise standard deviations of the calibrated steps, ascending.
        centre: for each score, the median of ordinary runs at each sigma.
        scale: for each score, the spread of ordinary runs at each sigma.
        threshold: limit on (score - centre) / scale for every score at every step at once.
        alpha: wanted false-positive rate of a call.
        n: ordinary prompts that it was fitted to.
        images: images of a prompt that were judged together.
        conditions: what the runs had in common: pipeline, digest of its weights, guidance, steps.
    """

    scores: tuple[str, ...]
    sigmas: tuple[float, ...]
    centre: Mapping[str, tuple[float, ...]]
    scale: Mapping[str, tuple[float, ...]]
    threshold: float
    alpha: float
    n: int
    images: int
    conditions: Mapping[str, Any]

    @property
    def score(self) -> str:
        """The first of the scores: the one that is drawn where there is room for one."""
        return self.scores[0]

    def limit(self, sigma: float, score: str | None = None) -> float:
        """Give the largest score that is not called at a noise level, interpolated in log sigma.

        Other numbers of steps begin and end a little elsewhere: up to a factor of 1.25 beyond the
        calibrated noise levels the values at the ends are held.

        Args:
            sigma: noise standard deviation.
            score: which score; the first if None.

        Returns:
            The limit, in units of the score.

        Raises:
            InputError: the band was not calibrated there, or for no such score.
        """
        name = self.score if score is None else score
        if name not in self.scores:
            raise InputError(f"score = {name!r}: the band holds {', '.join(self.scores)}")
        if not self.sigmas[0] / _ROOM <= sigma <= self.sigmas[-1] * _ROOM:
            raise InputError(
                f"sigma = {sigma:.4g} lies outside the calibrated {self.sigmas[0]:.4g} to "
                f"{self.sigmas[-1]:.4g}; calibrate with the steps and the scheduler that you use"
            )
        i = min(max(bisect_right(self.sigmas, sigma), 1), len(self.sigmas) - 1)
        low, high = self.sigmas[i - 1], self.sigmas[i]
        share = min(max(log(sigma / low) / log(high / low), 0.0), 1.0) if low < high else 0.0
        centre, scale = (
            (1 - share) * part[name][i - 1] + share * part[name][i]
            for part in (self.centre, self.scale)
        )
        return centre + self.threshold * scale

    def fires(self, sigma: float, score: float | Mapping[str, float]) -> bool:
        """Tell whether a score, or any of several by name, leaves the band at a noise level."""
        if not isinstance(score, Mapping):
            return bool(score > self.limit(sigma))
        return any(bool(value > self.limit(sigma, name)) for name, value in score.items())

    def check(self, **conditions: Any) -> None:
        """Refuse a run under other conditions than the calibrated ones.

        Args:
            conditions: what holds now: pipeline, digest, guidance_scale ...; None for not known.

        Raises:
            InputError: one of them differs.
        """
        for name, now in conditions.items():
            then = self.conditions.get(name)
            if then is not None and now is not None and now != then:
                raise InputError(
                    f"the band was calibrated with {name} = {then}, and here it is {now}; "
                    "calibrate anew with memfold calibrate"
                )

    def save(self, path: str | Path) -> None:
        """Write the band as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps({"memfold": "band", **asdict(self)}, indent=1)
        try:
            write_text(path, text + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error

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
        no_band = f"{path} is no band; write it with memfold calibrate"
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            kind = found.pop("memfold")
            for name in ("centre", "scale"):
                found[name] = {k: _numbers(v) for k, v in found[name].items()}
            found |= {"sigmas": _numbers(found["sigmas"]), "scores": tuple(found["scores"])}
            band = Band(**found)
            lengths = {len(part[s]) for part in (band.centre, band.scale) for s in band.scores}
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); write it with memfold calibrate"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(no_band) from error
        if kind != "band" or lengths != {len(band.sigmas)} or not np.isfinite(band.threshold):
            raise InputError(no_band)
        return band


def fit_band(
    runs: Float[ndarray, "n *images steps"] | Mapping[str, Float[ndarray, "n *images steps"]],
    sigmas: Float[ndarray, " steps"],
    *,
    alpha: float = 0.01,
    score: str = "cfg_norm",
    conditions: Mapping[str, Any] | None = None,
) -> Band:
    """Fit the band to ordinary prompts.

    M_i is the largest of (score - centre) / scale over the scores, images and steps of prompt i,
    with median and median absolute deviation of the other prompts; the threshold is the
    ceil((n + 1)(1 - alpha))-th smallest M_i, which exists for n >= 1 / alpha - 1. A call with a new
    prompt that is exchangeable with these leaves the band with probability at most about alpha,
    however its steps, images and scores hang together (Vovk et al. 2005). It would be exact if
    centre and scale came from other prompts; leave-one-out ones differ by order 1 / n from those
    of the new prompt, and cost none. One threshold for all scores wastes less than a share of
    alpha for each, since they rise together.

    Args:
        runs: scores of ordinary prompts, shape (n, steps) or (n, images, steps); or several by
            name.
        sigmas: noise standard deviation of each step.
        alpha: wanted false-positive rate of a call.
        score: what the scores are, if they come without a name.
        conditions: what the runs had in common.

    Returns:
        The band.

    Raises:
        InputError: too few prompts for this rate, shapes that differ, or scores that are not
            finite.
    """
    tables = _tables(runs if isinstance(runs, Mapping) else {score: runs})
    sigma = np.asarray(sigmas, dtype=float)
    n, images, steps = next(iter(tables.values())).shape
    if sigma.shape != (steps,) or not (sigma > 0).all() or len(set(sigma.tolist())) < steps:
        raise InputError(
            f"{len(sigma)} sigmas for scores of {steps} steps; pass one sigma above 0 a step"
        )
    rank = _rank(n, alpha)
    largest = np.full(n, -np.inf)
    for table in tables.values():
        for i in range(n):
            centre, scale = _location(np.delete(table, i, axis=0))
            largest[i] = max(largest[i], ((table[i] - centre) / scale).max())
    order = np.argsort(sigma)
    fitted = {name: _location(table) for name, table in tables.items()}
    return Band(
        scores=tuple(tables),
        sigmas=_numbers(sigma[order]),
        centre={name: _numbers(centre[order]) for name, (centre, _) in fitted.items()},
        scale={name: _numbers(scale[order]) for name, (_, scale) in fitted.items()},
        threshold=float(np.sort(largest)[rank - 1]),
        alpha=alpha,
        n=n,
        images=images,
        conditions=dict(conditions or {}),
    )


def prompts_needed(alpha: float) -> int:
    """Count the ordinary prompts that a band needs: n >= 1 / alpha - 1, and ten at least.

    Raises:
        InputError: alpha is no rate.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha = {alpha}; choose a rate between 0 and 1, such as 0.01")
    return max(ceil(1 / alpha - 1 - 1e-9), _LEAST)


def _rank(n: int, alpha: float) -> int:
    need = prompts_needed(alpha)
    if n < need:
        raise InputError(
            f"{n} ordinary prompts are too few for alpha = {alpha:g}; give {need} or more, or take "
            "a larger alpha"
        )
    return ceil((n + 1) * (1 - alpha) - 1e-9)


def _tables(runs: Mapping[str, Any]) -> dict[str, ndarray]:
    """Bring all scores to (n, images, steps)."""
    if not runs:
        raise InputError("no scores to fit a band to")
    tables = {}
    for name, values in runs.items():
        table = np.asarray(values, dtype=float)
        table = table[:, None] if table.ndim == 2 else table
        if table.ndim != 3 or not table.size:
            raise InputError(f"{name}: shape {table.shape}; pass (prompts, images, steps)")
        if not np.isfinite(table).all():
            raise InputError(f"{name} of an ordinary run is not finite; had the runs no guidance?")
        tables[name] = table
    if len({table.shape for table in tables.values()}) > 1:
        raise InputError(f"the scores {', '.join(tables)} have different shapes; pass equal ones")
    return tables


def _location(table: ndarray) -> tuple[ndarray, ndarray]:
    rows = table.reshape(-1, table.shape[-1])
    centre = np.median(rows, axis=0)
    spread = _MAD * np.median(np.abs(rows - centre), axis=0)
    return centre, np.maximum(spread, 1e-9 * np.maximum(np.abs(centre), 1.0))


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
