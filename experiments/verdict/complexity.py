"""What the correction for complexity does on real held-out images: the figures of docs/verdict.md.

    python experiments/verdict/complexity.py assets/demo

How much of the variance of a model's LID the image alone explains (R^2, each image left out), and how
often simple held-out images are called memorized with and without the correction. No ground truth
enters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import memfold
from memfold.datasets.images import load_images
from memfold.memorization.complexity import features, png_size
from memfold.memorization.conformal import calibrate

SIGMA, NOISES, IMAGES, REFERENCE, SPLITS = 0.2, 12, 600, 400, 100


def explained(y: np.ndarray, z: np.ndarray) -> float:
    """R^2 of least squares, each image predicted by all others."""
    x = np.c_[np.ones(len(y)), (z - z.mean(0)) / z.std(0)]
    hat = x @ np.linalg.inv(x.T @ x) @ x.T
    residual = (y - hat @ y) / (1 - np.diag(hat))
    return float(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assets", type=Path, help="model/ and holdout.npz")
    args = parser.parse_args()
    model = memfold.load(args.assets / "model")
    x = model.encode(load_images(args.assets / "holdout.npz").batch(0, IMAGES))
    generator = torch.Generator().manual_seed(0)
    found = memfold.dsm_lid(model, x, SIGMA, n_noises=NOISES, generator=generator)
    y, rng = found.lid.double().numpy(), np.random.default_rng(0)
    corrections = {
        "none": np.empty((IMAGES, 0)),
        "PNG size": png_size(x).double().numpy()[:, None],
        "`complexity.features`": features(x, SIGMA).double().numpy(),
    }
    simple = corrections["`complexity.features`"][:, 0]
    print("| correction | R² | p ≤ 0.05, all | p ≤ 0.05, simplest tenth |\n|---|---|---|---|")
    for name, z in corrections.items():
        shares = []
        for _ in range(SPLITS):
            order = rng.permutation(IMAGES)
            r, s = order[:REFERENCE], order[REFERENCE:]
            p = calibrate(y[s], y[r], features=z[s], reference_features=z[r]).p_value
            low = simple[s] <= np.quantile(simple[r], 0.1)
            shares.append(((p <= 0.05).mean(), (p[low] <= 0.05).mean()))
        whole, simplest = np.mean(shares, 0)
        r2 = f"{explained(y, z):.2f}" if z.shape[1] else "0"
        print(f"| {name} | {r2} | {whole:.1%} | {simplest:.1%} |")


if __name__ == "__main__":
    main()
