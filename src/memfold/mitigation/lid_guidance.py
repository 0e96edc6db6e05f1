"""Guidance towards a higher local intrinsic dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.prompt_scores import minus_denoising_loss
from memfold.sampling.view import StepView

from .base import Mitigation, Weights, guided


def lid_guidance(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    strength: float = 0.5,
    window: tuple[float, float] = (0.2, 5.0),
) -> Mitigation:
    """Push each step along the gradient of the denoising-loss LID under the prompt.

    In the window of sigmas the step's prediction is moved by strength |D_w - x| along the normed
    gradient of |n - eps_c|^2 at the predicted image, one noise a step.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: source of the noises.
        options: arguments of the pipeline.
        strength: length of the push, as a share of the step's own.
        window: sigmas in which it acts.

    Returns:
        The mitigation.
    """

    def fresh() -> Any:
        def change(view: StepView) -> Tensor | None:
            if not window[0] <= view.sigma <= window[1]:
                return None
            full = guided(model, view, options)
            cond = model.condition(prompt)
            with torch.enable_grad():
                x0 = full.detach().requires_grad_()
                noise = torch.randn(x0.shape, generator=generator).to(x0)
                loss = -minus_denoising_loss(
                    model.model, x0 + view.sigma * noise, view.sigma, cond, None, noise=noise
                )
                (gradient,) = torch.autograd.grad(loss.sum(), x0)
            shape = (-1, *[1] * (x0.ndim - 1))
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
            length = (full - view.x).flatten(1).norm(dim=1).reshape(shape)
            return full + strength * length * gradient / norm

        return change

    return Mitigation(
        model, "lid_guidance", prompt, prompt,
        f"each step was pushed towards a higher LID, by {strength:g} of its own length",
        steering=fresh, options=options,
    )  # fmt: skip
