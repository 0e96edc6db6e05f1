"""Compare estimators and scales on trained models: the table that chose the audit's defaults.

    python experiments/estimators/compare.py assets/demo

For every model-side estimator and sigma, on equal budgets of network passes: the median LID of the
repeated, rare, once-seen and held-out images, the AUROC of the memorized ones against the held-out
ones, and how far an exact copy (LID 0) stands below an ordinary held-out image of its complexity, in
spreads: the ratio by which the audit chooses sigma, which needs no known answer. Then the same for
the data side, where the repeated images are to be told from all others; also with near-duplicates
(the copies shifted in brightness by up to 2 of 255) in place of exact ones.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

import memfold
from memfold.datasets.images import load_images
from memfold.denoisers.base import Denoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.flipd import flipd
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.spectral import spectral_lid
from memfold.lid.twonn import TwoNN
from memfold.memorization.complexity import features
from memfold.memorization.conformal import calibrate

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8)
Group = dict[str, np.ndarray]


def model_side(denoiser: Denoiser) -> dict[str, Callable[..., Any]]:
    """Name the estimators, each at about 16 forward passes (a product counts 0.7, at x: 10)."""
    return {
        "denoising loss, 16 noises": lambda x, s, g: dsm_lid(
            denoiser, x, s, n_noises=16, generator=g
        ),
        "trace at x + sigma n, 4 noises, 4 probes": lambda x, s, g: flipd(
            denoiser, x, s, n_noises=4, n_probes=4, trace="hutchinson", generator=g
        ),
        "spectral count, 2 noises, 3 steps": lambda x, s, g: spectral_lid(
            denoiser, x, s, n_noises=2, n_steps=3, generator=g
        ),
        "FLIPD at x (published), 16 probes": lambda x, s, g: flipd(
            denoiser, x, s, at="x", n_probes=16, trace="hutchinson", generator=g
        ),
    }


def data_side(sigma: float) -> dict[str, Any]:
    """Name the estimators of the data's own LID."""
    return {
        "MLE, k = 20": MLE(n_neighbors=20),
        "local PCA, k = 20": LPCA(n_neighbors=20),
        "TwoNN, k = 20": TwoNN(n_neighbors=20),
        f"empirical FLIPD at x, sigma = {sigma:.2g}": EmpiricalLID(sigma=sigma, at="x"),
        f"empirical trace at x + sigma n, sigma = {sigma:.2g}": EmpiricalLID(
            sigma=sigma, random_state=0
        ),
    }


def groups(train: np.ndarray, truth: dict[str, Any], size: int, seed: int) -> Group:
    """Choose rows: one of each repeated image, the rare ones, and singles at random."""
    repeated = np.array([rows[0] for rows in truth["duplicated"]])
    known = {row for rows in truth["duplicated"] for row in rows} | set(truth["rare"])
    single = np.array([row for row in range(len(train)) if row not in known])
    single = np.random.default_rng(seed).permutation(single)[:size]
    return {"repeated": repeated, "rare": np.array(truth["rare"]), "once": single}


def auroc(low: np.ndarray, high: np.ndarray) -> float:
    """Share of pairs in which the memorized image has the lower value."""
    labels = np.r_[np.ones(len(low)), np.zeros(len(high))]
    return float(roc_auc_score(labels, -np.r_[low, high]))


def contrast(held: np.ndarray, z: np.ndarray) -> float:
    """Median of expected / spread over held-out images."""
    found = calibrate(
        held, held, features=z, reference_features=z, reference_index=np.arange(len(held))
    )
    return float(np.median(found.expected / found.spread))


def compare_models(denoiser: Denoiser, x: dict[str, torch.Tensor]) -> list[str]:
    """Measure every estimator at every sigma.

    Args:
        denoiser: the model.
        x: points of each group.

    Returns:
        Rows of a Markdown table.
    """
    rows = [
        "| estimator | sigma | repeated | rare | seen once | held out | AUROC repeated | AUROC rare "
        "| copy below held-out, in spreads | ms an image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    every, parts = torch.cat(list(x.values())), [len(v) for v in x.values()]
    jobs = [(n, e, s) for n, e in model_side(denoiser).items() for s in SIGMAS]
    for name, estimate, sigma in tqdm(jobs, desc="model side"):
        start = time.perf_counter()
        lid = estimate(every, sigma, torch.Generator().manual_seed(0)).lid
        each = 1000 * (time.perf_counter() - start) / len(every)
        by = dict(zip(x, (p.numpy() for p in lid.split(parts)), strict=True))
        z = features(x["held out"], sigma).double().numpy()
        medians = " | ".join(f"{np.median(v):.1f}" for v in by.values())
        rows.append(
            f"| {name} | {sigma} | {medians} | {auroc(by['repeated'], by['held out']):.3f} | "
            f"{auroc(by['rare'], by['held out']):.3f} | "
            f"{contrast(by['held out'].astype(float), z):.2f} | {each:.0f} |"
        )
    return rows


def compare_data(train: np.ndarray, held: np.ndarray, rows: Group, sigma: float) -> list[str]:
    """Measure every data-side estimator, with exact and with near duplicates.

    Args:
        train: points of all training rows, shape (n, d).
        held: points of held-out images.
        rows: training rows of each group.
        sigma: scale of the empirical denoiser.

    Returns:
        Rows of a Markdown table.
    """
    table = [
        "| estimator | duplicates | repeated | rare | seen once | held out "
        "| AUROC repeated against held-out | AUROC rare against held-out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shift = np.random.default_rng(0).integers(-2, 3, (len(train), 1)) * 2 / 255
    for kind, data in (("exact", train), ("near", (train + shift).astype(train.dtype))):
        for name, estimator in data_side(sigma).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own = estimator.fit_predict(data)
                out = estimator.predict(held)
            by = {group: own[index] for group, index in rows.items()}
            medians = " | ".join(f"{np.median(v):.2f}" for v in [*by.values(), out])
            table.append(
                f"| {name} | {kind} | {medians} | {auroc(by['repeated'], out):.3f} | "
                f"{auroc(by['rare'], out):.3f} |"
            )
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "assets", type=Path, help="model/, train.npz, holdout.npz, ground_truth.json"
    )
    parser.add_argument("--held-out", type=int, default=150, help="held-out images")
    parser.add_argument("--once", type=int, default=60, help="images seen once")
    parser.add_argument("--sigma", type=float, default=0.2, help="scale of the data side")
    parser.add_argument("--seed", type=int, default=0, help="chooses the images")
    args = parser.parse_args()
    denoiser = memfold.load(args.assets / "model")
    train = load_images(args.assets / "train.npz")
    held = load_images(args.assets / "holdout.npz")
    truth = json.loads((args.assets / "ground_truth.json").read_text())
    rows = groups(train.pixels, truth, args.once, args.seed)
    x = {
        name: denoiser.encode(train.select(index.tolist()).batch()) for name, index in rows.items()
    }
    x["held out"] = denoiser.encode(held.batch(0, args.held_out))
    print("\n".join(compare_models(denoiser, x)), "\n")
    flat = denoiser.encode(train.batch()).flatten(1).numpy()
    others = denoiser.encode(held.batch()).flatten(1).numpy()
    print("\n".join(compare_data(flat, others, rows, args.sigma)))


if __name__ == "__main__":
    main()
