"""The data-side LID of a population within the training data."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from memfold.lid.empirical import EmpiricalLID
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.twonn import TwoNN
from memfold.linalg.neighbors import nearest
from memfold.types import InputError

from .plan import Plan


def data_side(
    plan: Plan,
    train: Float[Tensor, "n d"],
    flat: Float[Tensor, "m d"],
    row: Int[np.ndarray, " m"],
    sigma: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure LID_* and its standard error at each image; a training row leaves itself out.

    Where the subjects are no training rows, both they and the reference are measured at their
    nearest training image: a near copy stands on that image, and its tiny distance would count
    as a lack of directions in the data.

    Args:
        plan: which estimator, and how many neighbours.
        train: all rows of the training data as points.
        flat: the images as points.
        row: the training row of each image, -1 for one that is not there.
        sigma: the scale of the model side, for estimators that take one.

    Returns:
        LID and standard error, each of shape (m,).
    """
    estimator = (
        EmpiricalLID(sigma=sigma, n_neighbors=plan.neighbors, at="x")
        if plan.data_estimator == "empirical"
        else neighbor_estimator(plan.data_estimator, plan.neighbors)
    )
    if plan.source != "train":
        _, found_row = nearest(flat, train, 1)
        row = np.where(row < 0, found_row[:, 0].numpy(), row)
    inside = row >= 0
    lid, stderr = np.empty(len(flat)), np.empty(len(flat))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses are what the audit looks for, and reports
        if inside.any():
            own = estimator.fit_predict_with_stderr(train.numpy())
            lid[inside], stderr[inside] = (values[row[inside]] for values in own)
        if not inside.all():
            estimator.fit(train.numpy())
            found = estimator.predict_with_stderr(flat[~inside].numpy())
            lid[~inside], stderr[~inside] = found
    return lid, stderr


def neighbor_estimator(name: str, n_neighbors: int) -> LPCA | MLE | TwoNN:
    """Make a data-side estimator that needs no scale.

    Args:
        name: "mle", "lpca" or "twonn".
        n_neighbors: images around each.

    Returns:
        The estimator, not yet fitted.

    Raises:
        InputError: an unknown name.
    """
    kinds: dict[str, type[LPCA | MLE | TwoNN]] = {"mle": MLE, "lpca": LPCA, "twonn": TwoNN}
    if name not in kinds:
        raise InputError(f"estimator {name!r} is unknown; choose from {', '.join(kinds)}")
    return kinds[name](n_neighbors=n_neighbors)
