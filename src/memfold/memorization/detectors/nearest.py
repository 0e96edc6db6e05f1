"""Distance to the nearest training image (Carlini et al. 2023; Somepalli et al. 2023)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.linalg.neighbors import nearest
from memfold.sampling.trajectory import Generation


def nearest_pixels(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Minus the root mean square distance of pixels in [0, 1] to the nearest training image.

    Args:
        generation: a run with training images beside it.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    return _nearest(generation, "pixels")


def nearest_latents(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Minus the root mean square distance of latents to the nearest training image's.

    Args:
        generation: a run with training images beside it.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    return _nearest(generation, "latents")


def nearest_embedding(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Minus the cosine distance to the nearest training image in the given embedding.

    With SSCD it is the similarity by which copies of Stable Diffusion are labelled, above .5
    (Somepalli et al. 2023); the labels of a benchmark made that way are its own.

    Args:
        generation: a run with training images in an embedding beside it.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,): the cosine less 1.
    """
    return _nearest(generation, "embedding")


def _nearest(generation: Generation, space: str) -> Tensor:
    training = generation.training
    if training is None:  # the registry says so before
        raise ValueError("the generation has no training images beside it")
    rows = training.spaces[space]
    queries = training.features(generation.images, generation.x)[space]
    if space == "embedding":
        rows, queries = (torch.nn.functional.normalize(r, dim=1) for r in (rows, queries))
    distance = nearest(queries, rows, 1)[0][:, 0]
    return -(distance**2 / 2 if space == "embedding" else distance / rows.shape[1] ** 0.5)
