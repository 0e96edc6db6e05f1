"""Changes of the steps: guidance that begins late, and guidance towards a higher LID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.prompt_scores import minus_denoising_loss
from memfold.sampling.arguments import guidance_of
from memfold.sampling.monitor import StepView
from memfold.types import InputError

from .base import Mitigation


def late_guidance(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    before: float = 0.0,
) -> Mitigation:
    """Hold guidance at 0 or 1 until |eps_c - eps_0| has its first local minimum (Jain et al. 2025).

    A minimum is a rise after a fall: where the difference only rises, guidance never begins. Each
    image has its own. Helps where the held run leaves the memorized image's basin; where the
    prompt alone (or the model without it) leads there anyway, it does not.

    Args:
        model: the pipeline; it needs an unconditional half.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: not used.
        options: arguments of the pipeline.
        before: guidance until then: 0 for none, 1 for the prompt alone.

    Returns:
        The mitigation.

    Raises:
        InputError: the pipeline has no unconditional half.
    """
    if not model.has_unconditional:
        model.unconditional()

    def fresh() -> Any:
        norms: list[Tensor] = []
        state: dict[str, Tensor] = {}

        def change(view: StepView) -> Tensor | None:
            if view.unconditional is None:
                return None
            norm = view.cfg_norm
            never = torch.zeros_like(norm, dtype=torch.bool)
            fallen, passed = state.get("fallen", never), state.get("passed", never)
            if norms:
                passed = passed | (fallen & (norm > norms[-1]))
                fallen = fallen | (norm < norms[-1])
            norms.append(norm)
            state.update(fallen=fallen, passed=passed)
            if bool(passed.all()):
                return None
            pull = view.conditional - view.unconditional
            held = view.unconditional + before * pull
            full = view.unconditional + _scale(model, options) * pull
            mask = passed.reshape(-1, *[1] * (held.ndim - 1))
            return torch.where(mask, full, held)

        return change

    return Mitigation(
        model, "late_guidance", prompt, prompt,
        f"guidance was {before:g} until the prompt's pull had its first minimum",
        steering=fresh, options=options,
    )  # fmt: skip


def lid_guidance(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
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
            guided = view.conditional
            if view.unconditional is not None:
                guided = view.unconditional + _scale(model, options) * (guided - view.unconditional)
            cond = model.condition(prompt)
            with torch.enable_grad():
                x0 = guided.detach().requires_grad_()
                noise = torch.randn(x0.shape, generator=generator).to(x0)
                loss = -minus_denoising_loss(
                    model.model, x0 + view.sigma * noise, view.sigma, cond, None, noise=noise
                )
                (gradient,) = torch.autograd.grad(loss.sum(), x0)
            shape = (-1, *[1] * (x0.ndim - 1))
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
            length = (guided - view.x).flatten(1).norm(dim=1).reshape(shape)
            return guided + strength * length * gradient / norm

        return change

    return Mitigation(
        model, "lid_guidance", prompt, prompt,
        f"each step was pushed towards a higher LID, by {strength:g} of its own length",
        steering=fresh, options=options,
    )  # fmt: skip


def away(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
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
            guided = view.conditional
            if view.unconditional is not None:
                guided = view.unconditional + _scale(model, options) * (guided - view.unconditional)
            rows = guided.flatten(1)
            distance, index = torch.cdist(rows, flat.to(rows)).min(1)
            near = distance / rows.shape[1] ** 0.5 < radius
            if not bool(near.any()):
                return None
            apart = (rows - flat.to(rows)[index]) * near[:, None]
            return guided + strength * apart.reshape(guided.shape)

        return change

    return Mitigation(
        model, "away", prompt, prompt, "each step was pushed away from the nearest training image",
        steering=fresh, options=options,
    )  # fmt: skip


def _scale(model: TextToImage, options: Mapping[str, Any]) -> float:
    """Return the guidance of the run: what was asked for, or what the pipeline takes by itself."""
    found = guidance_of(model, options)
    return 1.0 if found is None else found
