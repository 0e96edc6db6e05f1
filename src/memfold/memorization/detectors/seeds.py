"""Several seeds of one prompt, images only (Carlini et al. 2023): no weights are needed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

TILES = 4


def tiled_l2(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Minus the mean distance to the other seeds, each the largest over 4 x 4 tiles.

    Carlini et al. (2023, section 4.2): the largest distance over tiles keeps images with the same
    empty background from counting as copies. Root mean square of pixels in [0, 1].

    Args:
        generation: two or more images of one prompt.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    return -tiled_distances(generation.images).sum(1) / (len(generation.x) - 1)


def tiled_distances(images: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b b"]:
    """Compute each pair's largest root mean square difference over tiles (and frames)."""
    h, w = (max(side // TILES, 1) for side in images.shape[-2:])
    rows = []
    for image in images:
        square = (images - image).square().mean(1, keepdim=True).flatten(1, -3)
        rows.append(torch.nn.functional.avg_pool2d(square, (h, w)).flatten(1).amax(1).sqrt())
    return torch.stack(rows)


def seed_dimension(
    generation: Generation,
    *,
    generator: torch.Generator | None = None,
    noise: float = 0.1,
) -> Float[Tensor, " b"]:
    """Minus the LID of the seeds' own Gaussian at the scale `noise`, the same for each image.

    tr C (C + noise^2)^-1 with the covariance C of the images: the dimension that local PCA gives
    on samples of one prompt, counted softly at a scale; at most the number of seeds less one.

    Args:
        generation: two or more images of one prompt.
        generator: not used; nothing is random.
        noise: standard deviation a pixel below which a direction does not count.

    Returns:
        One score an image, shape (b,): minus degrees of freedom.
    """
    pixels = generation.images.flatten(1).double()
    centred = pixels - pixels.mean(0)
    values = torch.linalg.eigvalsh(centred @ centred.T / (len(pixels) - 1)).clamp_min(0)
    floor = noise**2 * pixels.shape[1] / len(pixels)
    lid = (values / (values + floor)).sum()
    return -lid.float().expand(len(pixels)).clone()
