"""Evidence of replication: the nearest training images and their copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memfold.linalg.neighbors import nearest, within
from memfold.types import InputError

_MASK_BYTES = 2**26
_EMBED_ROWS = 256


@dataclass(frozen=True)
class Matches:
    """The nearest training images of each query, one entry for each distinct image.

    Attributes:
        index: training row, the first of its equals, nearest first, shape (m, top).
        distance: Euclidean distance, in units of the data or of the embedding, shape (m, top).
        calibrated: distance over the mean distance to the k nearest distinct images, without
            unit; well below 1 means nearer than that neighbourhood explains, shape (m, top).
        n_near_duplicates: training rows that are near-duplicates of the nearest one, itself
            included, shape (m,).
    """

    index: Int[Tensor, "m top"]
    distance: Float[Tensor, "m top"]
    calibrated: Float[Tensor, "m top"]
    n_near_duplicates: Int[Tensor, " m"]


class _Images(NamedTuple):
    """The distinct training images, which of them each row is, and how many rows each has."""

    x: Tensor
    of_row: Tensor
    copies: Tensor


def nearest_training(
    queries: Float[Tensor, "m *d"],
    train: Float[Tensor, "n *d"],
    *,
    k: int = 50,
    top: int = 5,
    exclude: Int[Tensor, " m"] | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 0.01,
) -> Matches:
    """Find the nearest training images, by exact and by calibrated l2 distance.

    Carlini et al. 2023 (section 5.1): l2(x, y) / (alpha * mean of l2(x, z) over the k nearest z);
    here alpha = 1, theirs is 1/2. Copies would make the mean as small as the distance itself and
    so hide what they cause: equal rows are one image, and near-duplicates of the nearest image
    enter the mean once. A lone distinct image calibrates to 1, or to 0 where it equals the query.
    In data of dimension d a fresh point falls below t with probability near k t^d: the smaller d,
    the weaker the evidence.

    Args:
        queries: generated images, shape (m, ...).
        train: training images, shape (n, ...).
        k: distinct images to calibrate by; all where the data have fewer.
        top: distinct images to report.
        exclude: for queries that are training rows, their row, left out; -1 for none.
        embed: map of a batch (b, ...) to (b, e), applied to both sides; None compares pixels.
        tolerance: rows are near-duplicates up to this share of the root mean square distance of
            the training rows from their mean; larger for images that were encoded anew. (Where
            the data are far-apart clusters this spread is theirs: choose it smaller.)

    Returns:
        The matches, on the queries' device.

    Raises:
        InputError: for shapes, values, or k, top and tolerance that cannot be served.
    """
    x, y = _features(queries, embed), _features(train, embed)
    if not 1 <= top <= k <= len(y) - (exclude is not None):
        raise InputError(f"top is {top} and k is {k}: they need 1 <= top <= k <= rows ({len(y)})")
    own = torch.full((len(x),), -1, device=x.device) if exclude is None else exclude.long()
    if len(own) and int(own.max()) >= len(y):
        raise InputError(f"exclude names row {int(own.max())} of {len(y)}: pass rows of `train`")
    images = _Images(*torch.unique(y + 0.0, dim=0, return_inverse=True, return_counts=True))
    radius = _radius(y, tolerance)
    size = max(1, _MASK_BYTES // len(images.x))
    parts = zip(x.split(size), own.split(size), strict=True)
    found = [_match(part, images, rows, k, top, radius) for part, rows in parts]
    return Matches(*(torch.cat(values) for values in zip(*found, strict=True)))


def duplicate_groups(train: Float[Tensor, "n *d"], tolerance: float = 0.01) -> Int[Tensor, " n"]:
    """Label each row by the first row that it nearly repeats.

    In the order of the rows, each joins the first earlier representative within the tolerance,
    and is a representative itself if there is none. Groups thus have a bounded diameter (twice
    the tolerance), where transitive closure would chain; memory is linear in the rows.

    Args:
        train: rows, shape (n, ...).
        tolerance: largest distance to the representative, as a share of the root mean square
            distance of the rows from their mean.

    Returns:
        Index of the representative of each row, shape (n,); its own where it stands alone.

    Raises:
        InputError: for a negative tolerance, or NaN or infinity in the rows.

    >>> import torch
    >>> duplicate_groups(torch.tensor([[0.0], [9.0], [0.001], [9.0]])).tolist()
    [0, 1, 0, 1]
    """
    y = _features(train, None)
    radius = _radius(y, tolerance)
    label = torch.full((len(y),), -1, device=y.device)
    leaders = label[:0]
    size = max(1, int(_MASK_BYTES**0.5) // 4)
    for start in range(0, len(y), size):
        rows = torch.arange(start, min(start + size, len(y)), device=y.device)
        for first in range(0, len(leaders), _MASK_BYTES // size):
            rows = rows[label[rows] < 0]
            some = leaders[first : first + _MASK_BYTES // size]
            if len(rows):
                mask = within(y[rows], y[some], radius)
                hit = mask.any(1)
                label[rows[hit]] = some[mask[hit].to(torch.uint8).argmax(1)]
        rows = rows[label[rows] < 0]
        if not len(rows):
            continue
        mask = within(y[rows], y[rows], radius)
        for i, row in enumerate(rows):
            if label[row] < 0:
                label[rows[mask[i] & (label[rows] < 0)]] = row
        leaders = torch.cat([leaders, rows[label[rows] == rows]])
    return label


def near_duplicates(
    queries: Float[Tensor, "m *d"],
    train: Float[Tensor, "n *d"],
    *,
    exclude: Int[Tensor, " m"] | None = None,
    tolerance: float = 0.05,
) -> Int[Tensor, " m"]:
    """Count the training rows that nearly repeat each query, by exact distance.

    Args:
        queries: images, shape (m, ...).
        train: training images, shape (n, ...).
        exclude: for queries that are training rows, their row, left out; -1 for none.
        tolerance: largest distance, as in `nearest_training`.

    Returns:
        Counts, shape (m,).

    Raises:
        InputError: for shapes, values or a tolerance that cannot be served.

    >>> import torch
    >>> x = torch.tensor([[0.0], [9.0], [0.001], [9.0], [9.0]])
    >>> near_duplicates(x[:2], x, exclude=torch.tensor([0, -1])).tolist()
    [1, 3]
    """
    x, y = _features(queries, None), _features(train, None)
    radius = _radius(y, tolerance)
    parts = x.split(max(1, _MASK_BYTES // len(y)))
    counts = torch.cat([within(part, y, radius).sum(1) for part in parts])
    return counts if exclude is None else counts - (exclude >= 0).long()


def _features(images: Tensor, embed: Callable[[Tensor], Tensor] | None) -> Tensor:
    with torch.no_grad():
        if embed is not None:
            images = torch.cat([embed(part) for part in images.split(_EMBED_ROWS)])
        return images.detach().flatten(1)


def _radius(y: Tensor, tolerance: float) -> float:
    if tolerance < 0:
        raise InputError(f"tolerance is {tolerance}: pass 0 (equal rows) or more")
    center = y.mean(0, dtype=torch.float64)
    total = sum(float((part - center).square().sum()) for part in y.split(_EMBED_ROWS))
    return tolerance * (total / len(y)) ** 0.5


def _match(
    x: Tensor, images: _Images, own: Tensor, k: int, top: int, radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the four columns of Matches for a block of queries."""
    own_image = torch.where(own < 0, own, images.of_row[own.clamp_min(0)])
    single = (own >= 0) & (images.copies[own_image.clamp_min(0)] == 1)
    left_out = torch.where(single, own_image, -1)
    available = len(images.x) - int(single.any())
    if top > available:
        raise InputError(f"top is {top}, but {available} distinct images can be found")
    _, first = nearest(x, images.x, 1, exclude=left_out)
    near = within(images.x[first[:, 0]], images.x, radius)
    itself = near.gather(1, own_image.clamp_min(0)[:, None])[:, 0] & (own >= 0)
    rows = torch.where(near, images.copies, 0).sum(1) - itself.long()
    near.scatter_(1, first, False)
    reach = min(available, k + int(near.sum(1).max())) if len(x) else k
    distance, image = nearest(x, images.x, reach, exclude=left_out)
    counted = ~near.gather(1, image)
    counted &= counted.cumsum(1) <= k
    mean = (distance * counted).sum(1) / counted.sum(1)
    calibrated = distance[:, :top] / torch.where(mean > 0, mean, 1.0)[:, None]
    return _first_rows(images.of_row, image[:, :top], own), distance[:, :top], calibrated, rows


def _first_rows(of_row: Tensor, image: Tensor, own: Tensor) -> Tensor:
    """Name each image by its first training row, the query's own row left out."""
    order = of_row.sort(stable=True).indices
    start = torch.searchsorted(of_row[order], image.contiguous())
    first = order[start]
    second = order[(start + 1).clamp_max(len(order) - 1)]
    return torch.where(first == own[:, None], second, first)
