"""The whole method in one file: from a model and its data to a verdict on each image.

    python examples/whole_method.py

Judges 60 training images of the bundled model: 20 that stand many times in the data, 20 that the
training loop repeated, 20 that were seen once. About half a minute on a CPU.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import memfold
from memfold.datasets.images import Images, load_images
from memfold.memorization.complexity import features

ASSETS = Path(__file__).parent.parent / "assets" / "demo"
SIGMA = 0.2  # the scale: noise standard deviation, images in [-1, 1]


def main() -> None:
    """Measure both sides of subjects and reference, judge, and print the verdicts."""
    model = memfold.load(ASSETS / "model")
    train = load_images(ASSETS / "train.npz")
    held_out = load_images(ASSETS / "holdout.npz").select(range(300))
    truth = json.loads((ASSETS / "ground_truth.json").read_text())
    repeated = [rows[0] for rows in truth["duplicated"]]
    known = {row for rows in truth["duplicated"] for row in rows} | set(truth["rare"])
    once = [row for row in range(len(train)) if row not in known][:20]
    rows = [*repeated, *truth["rare"][:20], *once]
    kinds = ["data"] * len(repeated) + ["overfitting"] * 20 + ["none"] * 20

    def model_side(images: Images) -> memfold.Estimate:
        """LID_theta: what of a noise the model cannot remove (16 noises an image)."""
        generator = torch.Generator().manual_seed(0)
        return memfold.dsm_lid(model, model.encode(images.batch()), SIGMA, generator=generator)

    def estimate(lid: np.ndarray, stderr: np.ndarray) -> memfold.Estimate:
        return memfold.Estimate(torch.from_numpy(lid), torch.from_numpy(stderr), SIGMA, "MLE")

    # LID_*: how the training images lie around each image, itself left out.
    flat = model.encode(train.batch()).flatten(1).numpy()
    mle = memfold.MLE(n_neighbors=20)
    lid, stderr = mle.fit_predict_with_stderr(flat)
    others = mle.predict_with_stderr(model.encode(held_out.batch()).flatten(1).numpy())

    def complexity(images: Images) -> Tensor:
        """Simple images have a low LID without being memorized."""
        return features(model.encode(images.batch()), SIGMA)

    subjects = train.select(rows)
    verdicts = memfold.judge(
        model_side(subjects),
        estimate(lid[rows], stderr[rows]),
        reference_model=model_side(held_out),
        reference_data=estimate(*others),
        complexity=complexity(subjects),
        reference_complexity=complexity(held_out),
    )
    for row, kind, missing, error, q in zip(
        rows, verdicts.kind, verdicts.missing_dof, verdicts.missing_dof_stderr, verdicts.q_value,
        strict=True,
    ):  # fmt: skip
        print(f"image {row:>4}: {kind:<12} {missing:6.1f} +- {error:4.1f} missing, q = {q:.3f}")
    pairs = Counter(zip(kinds, verdicts.kind.tolist(), strict=True))
    for (true, called), count in sorted(pairs.items()):
        print(f"{count:>3} of kind {true!r} called {called!r}")


if __name__ == "__main__":
    main()
