"""What networks learn of digits: with rows that are repeated, over training, over sizes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from experiments.mlp import as_points, seeded, steps, train
from experiments.propositions.digits import digits, repeated, scale, split
from memfold.lid.dsm import dsm_lid
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.flipd import flipd
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE

WIDTH, BATCH = 192, 128


def duplicates(
    seed: int, counts: Sequence[int], each: int, singles: int, n_steps: int
) -> dict[str, Any]:
    """Measure both LIDs at rows that stand 1 to 100 times in the training set.

    Args:
        seed: of the choice of rows and of the training.
        counts: how often a row stands in the set.
        each: rows a count.
        singles: other rows.
        n_steps: of the training.
    """
    data = repeated(counts, each=each, singles=singles, seed=seed)
    sigma = scale(data.x)
    estimators = {
        "star_mle": MLE(), "star_lpca": LPCA(),
        "star_empirical": EmpiricalLID(sigma, random_state=seed),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses: what is to be shown
        star = {k: e.fit_predict(data.x.numpy())[data.chosen] for k, e in estimators.items()}
    net = seeded(64, seed, width=WIDTH)
    train(net, x=data.x, n=n_steps, seed=seed, batch=BATCH, title="repeated digits")
    model = as_points(net.requires_grad_(False))
    x, source = data.x[data.chosen], torch.Generator().manual_seed(seed)
    theta = flipd(model, x, sigma, generator=source)
    loss = dsm_lid(model, x, sigma, generator=source)
    return {"sigma": sigma, "copies": data.copies, "x": x, "theta": theta.lid, "loss": loss.lid,
            **star}  # fmt: skip


def over_training(
    seed: int, n: int, checkpoints: Sequence[int], points: int
) -> dict[str, np.ndarray]:
    """Measure LID_theta at training and held-out rows while a network trains on n digits.

    Compute is the same for every n: the steps of the last checkpoint, each with one batch.

    Args:
        seed: of the choice of rows and of the training.
        n: training rows.
        checkpoints: steps after which the averaged weights are measured.
        points: rows of each kind.
    """
    train_rows, held = split(n, seed)
    sigma = scale(digits())
    x = torch.cat([train_rows[:points], held[:points]])
    net, found = seeded(64, seed, width=WIDTH), []
    options = {"n": max(checkpoints), "seed": seed, "batch": BATCH, "title": f"{n} digits"}
    for step, kept in steps(net, train_rows, **options):
        if step in checkpoints:
            source = torch.Generator().manual_seed(seed)
            theta = flipd(as_points(kept), x, sigma, generator=source).lid
            loss = dsm_lid(as_points(kept), x, sigma, generator=source).lid
            found.append(torch.stack([theta, loss]).unflatten(1, (2, points)).mean(2))
    table = torch.stack(found).numpy()  # (checkpoints, estimator, training or held out)
    return {"sigma": np.array(sigma), "theta": table[:, 0], "loss": table[:, 1]}
