"""Candidates: garments that the bundled pipeline never saw, under captions of its ordinary form."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.text_to_image.data import combination, compose, read_idx, shades
from memfold.types import InputError

ASSETS = Path("assets/text_to_image")


@dataclass(frozen=True)
class Candidates:
    """Pictures with captions.

    Attributes:
        images: three channels in [0, 1], (n, 3, 32, 32).
        captions: one a picture, all different.
    """

    images: Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, rows: NDArray[np.int64] | slice) -> Candidates:
        """Choose some rows."""
        index = np.arange(len(self))[rows]
        return Candidates(self.images[index], [self.captions[i] for i in index])


def candidates(count: int, seed: int) -> Candidates:
    """Put garments of the test set on backgrounds as in training, each with a caption of its own.

    Captions are those of ordinary rows, "a photo of a dark bag by petra from cork"; none is among
    the training rows and prompts that are shipped.
    """
    garments, labels = garments_held_out()
    rng = np.random.default_rng((seed, 20))
    rows = rng.permutation(len(garments))[:count]
    shade = shades(garments, labels)
    taken, captions = known_captions(), []
    for row in rows:
        while (text := combination(rng, int(labels[row]), int(shade[row]))) in taken:
            pass
        taken.add(text)
        captions.append(text)
    return Candidates(as_images(compose(garments[rows], rng)), captions)


def public(count: int, seed: int) -> Candidates:
    """Draw ordinary training rows of the bundled pipeline."""
    with np.load(ASSETS / "train.npz") as data:
        rows = np.flatnonzero(data["groups"] == "ordinary")
        rows = np.random.default_rng((seed, 21)).permutation(rows)[:count]
        return Candidates(as_images(data["images"][rows]), data["captions"][rows].tolist())


def garments_held_out() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read Fashion-MNIST's test set, of which the pipeline saw nothing."""
    try:
        return read_idx("t10k-images-idx3-ubyte.gz"), read_idx("t10k-labels-idx1-ubyte.gz")
    except SystemExit as missing:
        raise InputError(str(missing)) from None


def known_captions() -> set[str]:
    """Captions of the shipped training rows and prompts."""
    with np.load(ASSETS / "train.npz") as data:
        known = set(data["captions"].tolist())
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        return known | {row["caption"] for row in csv.DictReader(file, delimiter=";")}


def as_images(grey: NDArray[np.uint8]) -> Tensor:
    """Bring grey bytes (n, h, w) to three channels in [0, 1]."""
    return torch.from_numpy(grey).float()[:, None].expand(-1, 3, -1, -1) / 255
