"""Synthetic populations whose truth is known."""

from dataclasses import dataclass

import numpy as np
import torch

from memfold.types import Estimate


def estimate(lid, stderr=0.0):
    lid = torch.as_tensor(np.asarray(lid, dtype=float))
    return Estimate(lid, torch.as_tensor(stderr, dtype=lid.dtype).expand_as(lid), 0.2, "synthetic")


@dataclass(frozen=True)
class World:
    """Numbers of subjects and reference, and the LID that a subject had were it not memorized."""

    model: np.ndarray
    data: np.ndarray
    complexity: np.ndarray
    reference_model: np.ndarray
    reference_data: np.ndarray
    reference_complexity: np.ndarray
    fair_model: np.ndarray

    def arguments(self, **changes):
        """The arguments of judge."""
        return {
            "model": estimate(self.model),
            "data": estimate(self.data),
            "reference_model": estimate(self.reference_model),
            "reference_data": estimate(self.reference_data),
            "complexity": self.complexity,
            "reference_complexity": self.reference_complexity,
        } | changes


def world(seed, m=100, n=400, overfitting=0, duplicated=0, simple=False, simplest=10.0):
    """Draw a world: the first subjects are overfitted, the next ones duplicated, the rest neither.

    Complexity is uniform on simplest to 60 (of simple subjects: the lowest fiftieth of that
    range); a fair image has model-side LID near 0.8 of it, skewed and with a spread in
    proportion, and data-side LID near 8 + complexity / 20.
    """
    rng = np.random.default_rng(seed)
    complexity = rng.uniform(simplest, 60, n + m)
    if simple:
        complexity[:m] = simplest + (complexity[:m] - simplest) / 50
    model = complexity * (0.5 + 0.3 * rng.gamma(6, 1 / 6, n + m))
    data = 8 + complexity / 20 + rng.normal(0, 1, n + m)
    fair = model[:m].copy()
    bad = overfitting + duplicated
    model[:bad] = rng.uniform(0.5, 3, bad)
    data[overfitting:bad] = 0
    z = complexity[:, None]
    return World(model[:m], data[:m], z[:m], model[m:], data[m:], z[m:], fair)
