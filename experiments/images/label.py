"""The written rule by which a generated image is called a copy. It knows nothing of any LID.

Calibrated distance (Carlini et al. 2023): l2 to the nearest training image over the mean l2 to the
50 nearest different ones. It is taken in four views of an image:

    whole       the pixels
    brightness  the pixels less their mean, scaled to unit length: offset and contrast are gone
    centre      the middle half of rows and of columns: the garment without its outline
    outline     means over 2 x 2 pixels: fine pattern and shifts below a pixel are blunted

The limit of a view comes from k real images that were never trained on (`data.Images.fresh`): the
j-th smallest of their calibrated distances, j = (k + 1) / 1000 rounded down, at least 1. An image
that is exchangeable with them falls below it with probability at most 1 / 1000 (conformal
prediction). Not the smallest of all: among 7,500 of them that one is itself a near duplicate.

    exactly          below the limit as a whole: the same picture, up to what a pixel may vary by
    reconstructively not exactly, but below the limit in one of the other views: the picture's
                     shape, centre or pattern is copied, and something of it is changed
    not              in no view
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memfold.memorization.replicate import nearest_training

EXACT, RECONSTRUCTED, NOT = 0, 1, 2
LABELS = ("exactly", "reconstructively", "not memorized")
NEIGHBOURS = 50
RARE_SHARE = 0.001


def brightness(x: Tensor) -> Tensor:
    """Pixels (b, c, h, w) less their mean, at unit length; a blank image stays at 0."""
    flat = x.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)


def centre(x: Tensor) -> Tensor:
    """The middle half of rows and columns."""
    h, w = x.shape[-2] // 4, x.shape[-1] // 4
    return x[..., h : x.shape[-2] - h, w : x.shape[-1] - w].flatten(1)


def outline(x: Tensor) -> Tensor:
    """Means over 2 x 2 pixels."""
    return F.avg_pool2d(x, 2).flatten(1)


VIEWS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "whole": None, "brightness": brightness, "centre": centre, "outline": outline,
}  # fmt: skip


@dataclass(frozen=True)
class Nearness:
    """How near images are to the training images, in each view.

    Attributes:
        calibrated: calibrated distance, (m, views), in the order of VIEWS.
        row: the nearest training row in each view, (m, views).
    """

    calibrated: np.ndarray
    row: np.ndarray


def nearness(x: Tensor, train: Tensor) -> Nearness:
    """Measure the calibrated distance of images (m, c, h, w) in every view."""
    found = [
        nearest_training(x, train, k=min(NEIGHBOURS, len(train)), top=1, embed=view)
        for view in VIEWS.values()
    ]
    return Nearness(
        torch.stack([m.calibrated[:, 0] for m in found], 1).double().numpy(),
        torch.stack([m.index[:, 0] for m in found], 1).numpy(),
    )


def limits(unseen: Nearness) -> np.ndarray:
    """Limit of each view, from images that were not trained on, (views,)."""
    k = len(unseen.calibrated)
    return np.sort(unseen.calibrated, 0)[max(1, int(RARE_SHARE * (k + 1))) - 1]


def label(made: Nearness, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label images, and name the training row that each copies, or else is nearest to.

    Args:
        made: nearness of the images.
        limit: one number a view.

    Returns:
        EXACT, RECONSTRUCTED or NOT, (m,), and a training row, (m,): that of the view furthest
        below its limit where the image is no exact copy but a reconstruction, else of the whole.
    """
    share = made.calibrated / limit
    exact = share[:, 0] < 1
    copied = (share[:, 1:] < 1).any(1)
    labels = np.where(exact, EXACT, np.where(copied, RECONSTRUCTED, NOT))
    view = np.where(labels == RECONSTRUCTED, 1 + share[:, 1:].argmin(1), 0)
    return labels, made.row[np.arange(len(view)), view]
