"""What is known of the images that one model generated, and the verdict on each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.images.data import REPEATED
from experiments.images.label import NOT
from memfold.memorization.mmh import judge
from memfold.types import Estimate

ALPHA = 0.05  # wanted false-discovery rate of the verdict


@dataclass(frozen=True)
class Subjects:
    """Images of one model; every array has one entry an image.

    Attributes:
        model: name of the model.
        x: the images (m, c, h, w).
        label: EXACT, RECONSTRUCTED or NOT.
        row: the training row that it copies, or is nearest to.
        origin: SINGLE, REPEATED or RARE, of that row.
        theta: LID_theta by estimator; NaN where it was not measured.
        star: LID_* by estimator, at that row.
        png: size as a PNG, bytes.
        features: the verdict's covariates (m, p).
        kind: the verdict.
        reference: size of the verdict's reference.
        misses: median error at which a GAN reaches held-out images, root mean square.
    """

    model: str
    x: Tensor
    label: np.ndarray
    row: np.ndarray
    origin: np.ndarray
    theta: dict[str, np.ndarray]
    star: dict[str, np.ndarray]
    png: np.ndarray
    features: np.ndarray
    kind: np.ndarray = field(default_factory=lambda: np.array([]))
    reference: int = 0
    misses: float | None = None

    @property
    def memorized(self) -> np.ndarray:
        """Whether the label calls it a copy, of either kind."""
        return self.label != NOT

    @property
    def truth(self) -> np.ndarray:
        """The kind that is known: a copy of a repeated image is the data's doing, of another not."""
        copied = np.where(self.origin == REPEATED, "data", "overfitting")
        return np.where(self.memorized, copied, "none")


@dataclass(frozen=True)
class Side:
    """One population as the verdict takes it.

    Attributes:
        theta: LID_theta, (m,).
        stderr: its standard error.
        star: LID_* at the nearest training image.
        star_stderr: its standard error.
        features: complexity (m, p).
        misfit: where the model does not fit, or None.
    """

    theta: Any
    stderr: Any
    star: Any
    star_stderr: Any
    features: np.ndarray
    misfit: Any = None


def verdict(subjects: Side, reference: Side, sigma: float) -> np.ndarray:
    """Judge generated images against images that the model has not seen; kinds (m,)."""
    made = judge(
        _estimate(subjects.theta, subjects.stderr, sigma),
        _estimate(subjects.star, subjects.star_stderr, float("nan")),
        reference_model=_estimate(reference.theta, reference.stderr, sigma),
        reference_data=_estimate(reference.star, reference.star_stderr, float("nan")),
        complexity=subjects.features,
        reference_complexity=reference.features,
        misfit=subjects.misfit,
        reference_misfit=reference.misfit,
        alpha=ALPHA,
    )
    return made.kind.astype(str)


def _estimate(lid: Any, stderr: Any, sigma: float) -> Estimate:
    values = (torch.as_tensor(np.asarray(v, dtype=np.float64)) for v in (lid, stderr))
    return Estimate(*values, sigma, "LID")
