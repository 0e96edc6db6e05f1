"""Guidance that begins late (Jain et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.sampling.view import StepView

from .base import Mitigation, Weights, guided


def late_guidance(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
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
            full = guided(model, view, options)
            mask = passed.reshape(-1, *[1] * (held.ndim - 1))
            return torch.where(mask, full, held)

        return change

    return Mitigation(
        model, "late_guidance", prompt, prompt,
        f"guidance was {before:g} until the prompt's pull had its first minimum",
        steering=fresh, options=options,
    )  # fmt: skip
