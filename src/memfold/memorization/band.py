"""The band of ordinary prompts: a limit on running scores, simultaneous over steps and scores."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil, isfinite, isnan, log
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
_VERSIONS = frozenset({"memfold", "diffusers", "torch"})  # recorded, not compared


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
        conditions: what the runs had in common, and the band holds for: pipeline, digest of its
            weights, scheduler, arguments of the call.

    Raises:
        InputError: a value is NaN, of a wrong type or length, or out of order.
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

    def __post_init__(self) -> None:
        """Refuse what would let a run through unjudged: NaN compares as within any limit."""
        steps, names = len(self.sigmas), set(self.scores)
        tables = [table for part in (self.centre, self.scale) for table in part.values()]
        numbers = [*self.sigmas, *(v for table in tables for v in table)]
        for wrong, what in (
            (not names or len(names) < len(self.scores), "scores: name one or more, each once"),
            (not all(_is_text(s) for s in self.scores), "scores: names are texts"),
            (not names == set(self.centre) == set(self.scale), "centre, scale: one row a score"),
            (not steps or any(len(t) != steps for t in tables), "one value a sigma in each row"),
            (not all(_is_number(v) for v in numbers), "a value is no finite number"),
            (any(a >= b for a, b in pairwise((0.0, *self.sigmas))), "sigmas: ascending, above 0"),
            (any(not v > 0 for t in self.scale.values() for v in t), "scale: above 0"),
            (not _is_number(self.threshold, infinite=True), "threshold: a number"),
            (not _is_number(self.alpha) or not 0 < self.alpha < 1, "alpha: between 0 and 1"),
            (not all(_is_count(v) for v in (self.n, self.images)), "n, images: 1 or more"),
            (not isinstance(self.conditions, Mapping), "conditions: a mapping"),
        ):
            if wrong:
                raise InputError(f"this is no band ({what}); write it with memfold calibrate")

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
        """Tell whether a score, or any of several by name, leaves the band at a noise level.

        Raises:
            InputError: a score is NaN, of which nothing can be told.
        """
        named = score if isinstance(score, Mapping) else {self.score: score}
        if any(isnan(value) for value in named.values()):
            raise InputError("a score is NaN; whether it leaves the band cannot be told")
        return any(bool(value > self.limit(sigma, name)) for name, value in named.items())

    def check(self, **conditions: Any) -> None:
        """Refuse a run under other conditions than the calibrated ones.

        Args:
            conditions: what holds now: pipeline, digest, arguments ...; None for not known. What
                the band does not record is not compared, nor are versions of software.

        Raises:
            InputError: one of them differs.
        """
        for name, now in conditions.items():
            if name in self.conditions and now is not None and name not in _VERSIONS:
                _compare(name, self.conditions[name], now)

    def save(self, path: str | Path) -> None:
        """Write the band as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        if not isfinite(self.threshold):
            raise InputError(f"threshold = {self.threshold}: such a band can be used, not written")
        text = json.dumps({"memfold": "band", **asdict(self)}, indent=1)
        try:
            write_text(path, text + "\n")
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); make room, or choose another place"
            ) from error

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
            found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
            if not isinstance(found, dict) or found.pop("memfold", None) != "band":
                raise InputError("it does not say that it is one")
            rows = {k: {s: tuple(v) for s, v in found[k].items()} for k in ("centre", "scale")}
            scores = found["scores"]
            if not isinstance(scores, list):
                raise InputError("scores: a list")
            found |= rows | {"sigmas": tuple(found["sigmas"]), "scores": tuple(scores)}
            return Band(**found)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); write it with memfold calibrate"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is no band; write it with memfold calibrate") from error


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


def _compare(name: str, then: Any, now: Any) -> None:
    """Refuse what differs, down to the entry of a mapping that does."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            _compare(str(key), then.get(key), now.get(key))
        return
    if now != then:
        raise InputError(
            f"the band was calibrated with {name} = {_short(then)}, and here it is {_short(now)}; "
            "it holds for nothing else: use what was calibrated, or calibrate anew with this"
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any, *, infinite: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value) or (infinite and not isnan(value))
    except OverflowError:
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _no_constant(name: str) -> Any:
    raise InputError(f"{name} is no finite number")
