"""The verdict over prompts: their signals on the scale of the reference, and their p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from memfold.memorization.prompt_verdict import combine, own_p_values, p_values, standards

from .store import Columns


@dataclass(frozen=True)
class Judge:
    """The reference of an audit of prompts.

    Attributes:
        names: the signals.
        base: scores of the reference by signal, shape (m, images).
        standard: centre and spread of each over the reference.
        ordinary: combined scores of the reference, shape (m,).
        own: whether the judged prompts are their own reference.
    """

    names: tuple[str, ...]
    base: dict[str, ndarray]
    standard: dict[str, tuple[float, float]]
    ordinary: ndarray
    own: bool

    @staticmethod
    def of(found: Columns, reference: Columns, n: int, m: int, names: Sequence[str]) -> Judge:
        """Take the scale from the reference, or from the n judged prompts where it is empty."""
        base = _scores(reference, names, m) if m else _scores(found, names, n)
        standard = standards(base)
        return Judge(tuple(names), base, standard, combine(base, standard).mean(1), own=not m)

    def judge(self, found: Columns, n: int) -> dict[str, ndarray]:
        """Judge the prompts of the audit.

        Args:
            found: their scores, a row an image.
            n: how many prompts they are.

        Returns:
            `score`, `p_value` and `signal.NAME` of each prompt.
        """
        scores = _scores(found, self.names, n)
        score = combine(scores, self.standard).mean(1)
        p = (own_p_values if self.own else p_values)(score, self.ordinary)
        signals = {f"signal.{k}": scores[k].mean(1) for k in self.names}
        return {"score": score, "p_value": p} | signals

    def again(self, scores: Mapping[str, ndarray]) -> tuple[float, float]:
        """Judge one prompt once more, by new images.

        Args:
            scores: scores of the images by signal, shape (images,).

        Returns:
            Score and p-value among the reference.
        """
        rows = {k: np.asarray(scores[k], dtype=float).reshape(1, -1) for k in self.names}
        score = combine(rows, self.standard).mean(1)
        return float(score[0]), float(p_values(score, self.ordinary)[0])


def _scores(columns: Columns, names: Sequence[str], n: int) -> dict[str, ndarray]:
    return {k: np.asarray(columns[f"score.{k}"], dtype=float).reshape(n, -1) for k in names}
