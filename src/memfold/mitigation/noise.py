"""Another beginning: initial noise that the prompt does not pull (Han et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.sampling.monitor import Monitor
from memfold.sampling.view import StepView
from memfold.types import InputError

from .base import Mitigation, Weights

_ROUNDING = 0.02  # of the score, between the watched call and ours


class _Seen(Exception):
    """Ends a run after its first step's network pass."""


def noise(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    target: float = 0.5,
    iterations: int = 10,
    learning_rate: float = 0.1,
) -> Mitigation:
    """Move the initial noise until |eps_c - eps_0| falls to a share of what it was.

    Gradient steps on x_T, each followed by bringing x_T back to its own norm; done for the seeds of
    each run, and handed to the pipeline as its `latents`.

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
        InputError: the pipeline has no unconditional half, takes no latents, or an option is out of
            range.
    """
    if "latents" not in model.accepts:
        raise InputError(f"{model.name} takes no latents=; choose another method")
    if not (0 < target <= 1 and iterations >= 1 and learning_rate > 0):
        raise InputError(
            f"target = {target}, iterations = {iterations}, learning_rate = {learning_rate}; take "
            "0 < target <= 1, iterations >= 1, learning_rate > 0"
        )
    cond, uncond = model.condition(prompt), model.unconditional()

    def start(drawn: Sequence[int]) -> Tensor:
        view, latents = _first(model, prompt, drawn, options)
        moved = _moved(model, view, cond, uncond, target, iterations, learning_rate)
        shape = (-1, *[1] * (latents.ndim - 1))
        # Both coordinates differ by one factor; the pipeline's own noise tells it.
        factor = latents.flatten(1).norm(dim=1) / view.x.flatten(1).norm(dim=1)
        return (moved * factor.reshape(shape)).to(latents)

    return Mitigation(
        model, "noise", prompt, prompt,
        f"the initial noise was moved until the prompt pulled at most {target:.0%} as hard, or for "
        f"{iterations} steps",
        options=options, start=start,
    )  # fmt: skip


@torch.no_grad()
def _first(
    model: TextToImage, prompt: str, seeds: Sequence[int], options: Mapping[str, Any]
) -> tuple[StepView, Tensor]:
    """Run the first step; return it, and the noise that the pipeline drew for it."""
    seen: list[StepView] = []

    def on_step(view: StepView) -> None:
        seen.append(view)
        raise _Seen

    try:
        with Monitor(model, on_step=on_step) as monitor:
            model.generate(prompt, seeds, **options)
    except _Seen:
        pass
    if not seen:
        raise InputError(f"{model.name} cannot be watched: {monitor.blind or 'it makes no step'}")
    view, louder = seen[0], monitor.init_noise_sigma
    if louder != 1.0:  # the pipeline multiplies its noise by it, in VE coordinates
        return view, view.x / louder
    one = torch.ones(1)
    return view, view.x / float(model.to_ve(one, one * view.sigma))


def _moved(
    model: TextToImage,
    view: StepView,
    cond: Any,
    uncond: Any,
    target: float,
    iterations: int,
    learning_rate: float,
) -> Tensor:
    x = view.x.clone()
    shape = (-1, *[1] * (x.ndim - 1))
    size, wanted = x.flatten(1).norm(dim=1).reshape(shape), target * view.cfg_norm
    for _ in range(iterations):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            pull = model.model(y, view.sigma, cond) - model.model(y, view.sigma, uncond)
            norm = pull.flatten(1).norm(dim=1) / view.sigma
            (gradient,) = torch.autograd.grad(norm.sum(), y)
        todo = (norm.detach() > wanted * (1 + _ROUNDING)).reshape(shape)
        if not bool(todo.any()):
            break
        unit = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
        moved = x - learning_rate * size * unit
        moved = moved * size / moved.flatten(1).norm(dim=1).reshape(shape)
        x = torch.where(todo, moved, x)
    return x
