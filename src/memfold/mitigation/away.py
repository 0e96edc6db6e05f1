"""Guidance away from the nearest training image (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.sampling.view import StepView
from memfold.types import InputError

from .base import Mitigation, Weights, guided


def away(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    reference: Tensor | None = None,
    strength: float = 0.5,
    radius: float = 0.5,
) -> Mitigation:
    """Push each step away from the nearest reference latent (Chen et al. 2024).

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: not used.
        options: arguments of the pipeline.
        reference: latents of the training images, shape (n, *d).
        strength: length of the push, as a share of the distance.
        radius: root mean square distance within which it acts.

    Returns:
        The mitigation.

    Raises:
        InputError: there is no reference.
    """
    if reference is None:
        raise InputError(
            "method = 'away' needs reference latents; pass reference=model.encode(...)"
        )
    flat = reference.flatten(1)

    def fresh() -> Any:
        def change(view: StepView) -> Tensor | None:
            full = guided(model, view, options)
            rows = full.flatten(1)
            distance, index = torch.cdist(rows, flat.to(rows)).min(1)
            near = distance / rows.shape[1] ** 0.5 < radius
            if not bool(near.any()):
                return None
            apart = (rows - flat.to(rows)[index]) * near[:, None]
            return full + strength * apart.reshape(full.shape)

        return change

    return Mitigation(
        model, "away", prompt, prompt, "each step was pushed away from the nearest training image",
        steering=fresh, options=options,
    )  # fmt: skip
