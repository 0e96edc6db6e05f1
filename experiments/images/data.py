"""The images of this experiment, and which of them the training loops saw how often.

The training rows are those of the bundled demo model: 20 images stand 41 to 75 times among them
(repeated), 30 stand once but were drawn by the training loop as often as an average repeated one
(rare), 3,000 stand once and were drawn once an epoch (single).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.demo_model.train import DATA_DIR, read_idx, shrink
from memfold.types import InputError

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "assets" / "demo"
GAN = ROOT / "assets" / "gan" / "generator.safetensors"
TEST = "t10k-images-idx3-ubyte.gz"
SINGLE, REPEATED, RARE = 0, 1, 2
ORIGINS = ("single", "repeated", "rare")


@dataclass(frozen=True)
class Images:
    """Training rows with what is known of them, and real images that were not trained on.

    Attributes:
        train: all training rows, copies included, (n, c, h, w) in [-1, 1].
        origin: SINGLE, REPEATED or RARE for each row, (n,).
        weights: how often the training loop drew each row, up to a factor, (n,).
        holdout: the reference of the verdict, (m, c, h, w).
        fresh: images that fix the thresholds of the labels, (k, c, h, w).
    """

    train: Tensor
    origin: np.ndarray
    weights: Tensor
    holdout: Tensor
    fresh: Tensor


def as_points(grey: np.ndarray) -> Tensor:
    """Turn uint8 (n, h, w) into float32 (n, 1, h, w) in [-1, 1]."""
    return torch.from_numpy(grey)[:, None].float() / 127.5 - 1


def load_demo(*, whole: bool, folder: Path = DEMO) -> Images:
    """Load the training rows and the held-out images.

    Args:
        whole: fix the labels' thresholds on all test images of Fashion-MNIST that are not in the
            reference, from Debian's package; else on one half of the bundled held-out images,
            the other half being the reference.
        folder: the bundled data.

    Raises:
        InputError: the package is wanted and missing.
    """
    train = np.load(folder / "train.npz")["images"]
    holdout = np.load(folder / "holdout.npz")["images"]
    truth = json.loads((folder / "ground_truth.json").read_text("utf-8"))
    origin = np.full(len(train), SINGLE)
    for rows in truth["duplicated"]:
        origin[rows] = REPEATED
    origin[truth["rare"]] = RARE
    weights = torch.ones(len(train), dtype=torch.float64)
    weights[truth["rare"]] = sum(map(len, truth["duplicated"])) / len(truth["duplicated"])
    if whole:
        fresh = without(fashion_mnist(TEST), holdout)
    else:
        holdout, fresh = np.split(holdout, [len(holdout) // 2])
    return Images(as_points(train), origin, weights, as_points(holdout), as_points(fresh))


def fashion_mnist(name: str) -> np.ndarray:
    """Read images of Fashion-MNIST, uint8 (n, 16, 16), made small as the demo's were.

    Args:
        name: an idx file of Debian's package.

    Raises:
        InputError: the package is not installed.
    """
    if not (path := DATA_DIR / name).is_file():
        raise InputError(
            f"{path} is missing: `apt install dataset-fashion-mnist`, or run with --quick"
        )
    return shrink(read_idx(name))


def without(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Leave out of `images` every one that also stands in `others`."""
    known = {image.tobytes() for image in others}
    return images[[image.tobytes() not in known for image in images]]
