"""Synthetic data in which it is known what invites memorization, and what does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Int
from torch import Tensor

from memfold.datasets.manifolds import place
from memfold.tensors import check_generator
from memfold.types import InputError, Samples


class Kind(IntEnum):
    """What a row is; the `component` of the samples."""

    COMMON = 0
    """From a well-covered region of full dimension: nothing to find."""
    SIMPLE = 1
    """From a well-covered region of low dimension: low LID, and honest."""
    DUPLICATED = 2
    """A row that is repeated: a point mass, LID 0 in the data (data-driven memorization)."""
    RARE = 3
    """The only row far and wide: a model that fits it alone overfits (LID below the data's)."""


@dataclass(frozen=True)
class MemorizedData:
    """Training rows, held-out rows, and what is true of them.

    Attributes:
        train: training rows with their true LID and, as `component`, their Kind, shuffled.
        held_out: fresh rows of the kinds COMMON, SIMPLE and RARE; a fair null population.
        group: for each training row, which row it copies: equal numbers are equal rows, (n,).
        copies: for each training row, how often it stands in the set, itself included, (n,).
    """

    train: Samples
    held_out: Samples
    group: Int[Tensor, " n"]
    copies: Int[Tensor, " n"]


def memorized(
    *,
    dim: int = 8,
    simple_dim: int = 2,
    ambient: int = 32,
    n_common: int = 1000,
    n_simple: int = 300,
    n_duplicated: int = 10,
    copies: int = 40,
    n_rare: int = 20,
    n_held_out: int = 300,
    distance: float = 20.0,
    generator: torch.Generator,
) -> MemorizedData:
    """Draw a training set with duplicated rows, rare single rows, and a simple region.

    COMMON rows are standard normal on an affine subspace of dimension `dim`; DUPLICATED rows are
    drawn likewise and repeated; SIMPLE rows are standard normal on another subspace of dimension
    `simple_dim`; RARE rows lie on the common subspace too (true LID `dim`), but in directions
    drawn for each at `distance` from its middle, where no other row is near.

    Args:
        dim: true LID of common and rare rows.
        simple_dim: true LID of simple rows.
        ambient: dimension of the space.
        n_common: number of common rows.
        n_simple: number of simple rows.
        n_duplicated: number of distinct repeated rows.
        copies: how often each of them stands in the training set.
        n_rare: number of rare rows.
        n_held_out: number of held-out rows of each of the three kinds.
        distance: how far out rare rows lie, in standard deviations of the common ones.
        generator: source of everything random.

    Returns:
        The training rows, the held-out rows and the truth.

    Raises:
        InputError: if the space is too small, or `copies` below 2.
    """
    check_generator(generator)
    if copies < 2:
        raise InputError(f"copies is {copies}: a duplicated row stands at least 2 times")

    def normal(n: int, d: int) -> Tensor:
        return torch.randn(n, d, generator=generator)

    far = normal(n_rare + n_held_out, dim)
    far = distance * far / far.norm(dim=1, keepdim=True)
    common = torch.cat([normal(n_common + n_held_out + n_duplicated, dim), far])
    common = place(common, ambient, spread=5.0, generator=generator)
    simple = place(
        normal(n_simple + n_held_out, simple_dim), ambient, spread=5.0, generator=generator
    )
    usual, fresh, repeated, rare, rare_fresh = common.split(
        [n_common, n_held_out, n_duplicated, n_rare, n_held_out]
    )
    lids = {Kind.COMMON: dim, Kind.SIMPLE: simple_dim, Kind.DUPLICATED: 0, Kind.RARE: dim}
    parts = [usual, simple[:n_simple], repeated, rare]
    times = torch.cat(
        [torch.full((len(p),), copies if i == Kind.DUPLICATED else 1) for i, p in enumerate(parts)]
    )
    order = torch.randperm(int(times.sum()), generator=generator)
    group = torch.arange(len(times)).repeat_interleave(times)[order]
    distinct = _label(parts, [lids[kind] for kind in Kind], list(Kind))
    train = Samples(distinct.x[group], distinct.lid[group], distinct.component[group])
    kinds = [Kind.COMMON, Kind.SIMPLE, Kind.RARE]
    held_out = _label([fresh, simple[n_simple:], rare_fresh], [lids[kind] for kind in kinds], kinds)
    return MemorizedData(train, held_out, group, times[group])


def _label(parts: list[Tensor], lids: list[int], kinds: list[Kind]) -> Samples:
    sizes = torch.tensor([len(part) for part in parts])
    lid = torch.tensor(lids, dtype=parts[0].dtype).repeat_interleave(sizes)
    component = torch.tensor([int(kind) for kind in kinds]).repeat_interleave(sizes)
    return Samples(torch.cat(parts), lid, component)
