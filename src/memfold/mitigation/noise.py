"""Another beginning: initial noise that the prompt does not pull (Han et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.sampling.monitor import StepView
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError

from .base import Mitigation


def noise(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    target: float = 0.5,
    iterations: int = 10,
    learning_rate: float = 0.1,
) -> Mitigation:
    """Move the first step's latents until |eps_c - eps_0| falls to a share of what it was.

    Gradient steps on x_T, each followed by bringing x_T back to its own norm; done anew for the
    seeds of each run, at the first step and no other.

    Args:
        model: the pipeline; it needs an unconditional half.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: not used.
        options: arguments of the pipeline.
        target: wanted share of the first step's CFG norm.
        iterations: at most.
        learning_rate: length of a step, as a share of |x_T|.

    Returns:
        The mitigation.

    Raises:
        InputError: the pipeline has no unconditional half or takes no latents.
    """
    if "latents" not in model.accepts:
        raise InputError(f"{model.name} takes no latents=; choose another method")
    uncond = model.unconditional()
    cond = model.condition(prompt)
    first = generate_watched(model, prompt, list(seeds), attention=False, **options).first
    moved = _moved(model, first, cond, uncond, target, iterations, learning_rate)
    one = torch.ones(1)
    start = moved / float(model.to_ve(one, one * first.sigma))
    return Mitigation(
        model, "noise", prompt, prompt,
        f"the initial noise was moved until the prompt pulled {target:.0%} as hard",
        options={**options, "latents": start},
    )  # fmt: skip


def _moved(
    model: TextToImage,
    view: StepView,
    cond: Any,
    uncond: Any,
    target: float,
    iterations: int,
    learning_rate: float,
) -> torch.Tensor:
    x = view.x.clone()
    shape = (-1, *[1] * (x.ndim - 1))
    size, wanted = x.flatten(1).norm(dim=1).reshape(shape), target * view.cfg_norm
    for _ in range(iterations):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            pull = model.model(y, view.sigma, cond) - model.model(y, view.sigma, uncond)
            norm = pull.flatten(1).norm(dim=1) / view.sigma
            (gradient,) = torch.autograd.grad(norm.sum(), y)
        todo = (norm.detach() > wanted).reshape(shape)
        if not bool(todo.any()):
            break
        unit = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
        x = torch.where(todo, x - learning_rate * size * unit, x)
        x = x * size / x.flatten(1).norm(dim=1).reshape(shape)
    return x
