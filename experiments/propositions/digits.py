"""Digits: rows that are repeated a known number of times, and sets of known size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memfold.linalg.neighbors import nearest


@dataclass(frozen=True)
class Repeated:
    """A training set in which some rows stand several times.

    Attributes:
        x: all rows, copies included, shape (n, 64).
        chosen: where one copy of each chosen row stands, shape (k,).
        copies: how often each of them stands in the set, shape (k,).
    """

    x: Tensor
    chosen: Tensor
    copies: Tensor


def digits() -> Tensor:
    """Load the 1,797 different digits of scikit-learn, 8 x 8 in [-1, 1], shape (n, 64)."""
    from sklearn.datasets import load_digits

    rows = np.unique(load_digits().images.reshape(-1, 64), axis=0)
    return torch.from_numpy(rows).float() / 8 - 1


def repeated(counts: Sequence[int], *, each: int, singles: int, seed: int) -> Repeated:
    """Repeat `each` rows as often as each of `counts` says, among `singles` other rows.

    Args:
        counts: how often a row stands in the set.
        each: rows a count.
        singles: rows that stand once and are not chosen.
        seed: of the choice.
    """
    order = torch.randperm(len(x := digits()), generator=torch.Generator().manual_seed(seed))
    copies = torch.tensor(counts).repeat_interleave(each)
    own, others = x[order].split([len(copies), len(x) - len(copies)])
    rows = torch.cat([own.repeat_interleave(copies, 0), others[:singles]])
    return Repeated(rows, copies.cumsum(0) - 1, copies)


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a training set of n digits; return it and the rest."""
    order = torch.randperm(len(x := digits()), generator=torch.Generator().manual_seed(seed))
    return x[order[:n]], x[order[n:]]


def scale(x: Tensor) -> float:
    """Return the sigma at which a row and all others weigh alike for a perfect denoiser of x.

    The n - 1 others, at the median distance r to the nearest, outweigh a row's own weight as
    n exp(-r^2 / (2 sigma^2)) = 1: sigma = r / sqrt(2 log n).
    """
    x = x.unique(dim=0)
    r = nearest(x, x, 2)[0][:, 1].median()
    return float(r) / math.sqrt(2 * math.log(len(x)))
