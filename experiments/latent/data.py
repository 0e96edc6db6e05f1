"""Latents of the bundled pipeline's training data, and the images that are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.finetune.data import ASSETS, as_images, candidates
from experiments.text_to_image.data import REPEATS
from memfold import TextToImage

GROUPS = ("verbatim", "template", "control", "ordinary", "held out")


@dataclass(frozen=True)
class Training:
    """The shipped training rows as latents; a repeated image stands as often as in training.

    Attributes:
        x: latents, (n, 256).
        captions: one a row.
        groups: verbatim, template, control, ordinary or private, one a row.
    """

    x: Tensor
    captions: NDArray[np.str_]
    groups: NDArray[np.str_]

    def of(self, caption: str) -> Tensor:
        """The rows of one caption."""
        return self.x[torch.from_numpy(self.captions == caption)]


def training(model: TextToImage, private: int, seed: int) -> Training:
    """Encode the rows of train.npz, and repeat the verbatim ones 150 times, as in training.

    Args:
        model: the pipeline.
        private: how many images of a fine-tune, each once, belong to the data too.
        seed: of these.
    """
    with np.load(ASSETS / "train.npz") as data:
        images, captions, groups = data["images"], data["captions"], data["groups"]
    x = torch.cat([model.encode(as_images(part)) for part in np.array_split(images, 40)])
    times = np.where(groups == "verbatim", REPEATS, 1)
    rows = np.repeat(np.arange(len(images)), times)
    x, captions, groups = x.flatten(1)[rows], captions[rows], groups[rows]
    if private:
        own = candidates(private, seed)
        x = torch.cat([x, model.encode(own.images).flatten(1)])
        captions, groups = (np.append(a, b) for a, b in
                            ((captions, own.captions), (groups, ["private"] * private)))  # fmt: skip
    return Training(x, captions, groups)


@dataclass(frozen=True)
class Subjects:
    """Images to measure, each under a caption.

    Attributes:
        x: latents, (n, *shape).
        captions: one an image.
        groups: which of GROUPS, one an image.
    """

    x: Tensor
    captions: list[str]
    groups: NDArray[np.str_]


def subjects(model: TextToImage, rows: Training, counts: dict[str, int], seed: int) -> Subjects:
    """Draw captions of each group, with one training image of each; and held-out ones."""
    rng = np.random.default_rng((seed, 7))
    x, captions, groups = [], [], []
    for group, n in counts.items():
        if group == "held out":
            fresh = candidates(n, seed + 1)
            x.append(model.encode(fresh.images))
            captions += fresh.captions
        else:
            names = rng.permutation(np.unique(rows.captions[rows.groups == group]))[:n]
            picked = [int(rng.choice(np.flatnonzero(rows.captions == name))) for name in names]
            x.append(rows.x[picked].unflatten(1, model.shape))
            captions += [str(name) for name in names]
        groups += [group] * len(x[-1])
    return Subjects(torch.cat(x), captions, np.array(groups))
