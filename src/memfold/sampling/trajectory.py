"""One generation of a prompt, with all that was seen on its way: what the detectors look at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._calls import Condition
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

from .attention import AttentionWatch
from .memo import Memo
from .monitor import Monitor
from .steering import Change, conditioned, steered
from .training import TrainingRows
from .view import StepView


@dataclass(frozen=True)
class Generation:
    """Images of one prompt and the steps that led to them.

    Attributes:
        model: the pipeline.
        prompt: the words.
        seeds: one an image.
        guidance_scale: w of classifier-free guidance; None where the pipeline has none.
        cond: condition of the prompt.
        uncond: condition of no prompt; None where the pipeline has none.
        x: final latents in VE coordinates, shape (b, *d).
        views: the steps; kept on the CPU.
        scores: the monitor's scores, name -> (b, steps).
        training: training images to compare with; None for none.
        memo: what detectors computed for these images and may share.
    """

    model: TextToImage
    prompt: str
    seeds: tuple[int, ...]
    guidance_scale: float | None
    cond: Condition
    uncond: Condition | None
    x: Float[Tensor, "b *d"]
    views: tuple[StepView, ...]
    scores: dict[str, Float[Tensor, "b s"]]
    training: TrainingRows | None = None
    memo: Memo = field(init=False, repr=False, compare=False, default_factory=Memo)

    @cached_property
    @torch.no_grad()
    def images(self) -> Float[Tensor, "b c h w"]:
        """The images, in [0, 1]."""
        return self.model.decode(self.x).clamp(0, 1)

    @property
    def first(self) -> StepView:
        """The first step: almost pure noise."""
        return self.views[0]


@torch.no_grad()
def generate_watched(
    model: TextToImage,
    prompt: str,
    seeds: Sequence[int],
    *,
    cond: Condition | None = None,
    change: Change | None = None,
    attention: bool | None = None,
    guidance_scale: float | None = None,
    **options: Any,
) -> Generation:
    """Generate with the user's own pipeline and keep every step.

    Args:
        model: the pipeline.
        prompt: the words.
        seeds: one an image.
        cond: stands for the prompt's own condition (an optimised embedding); None for its own.
        change: replaces steps, by `steered`; views and scores keep what the network itself said.
        attention: whether to watch the cross-attention; None for where there is any.
        guidance_scale: w; None for the pipeline's default.
        options: further arguments of the pipeline.

    Returns:
        The generation.

    Raises:
        InputError: a pipeline that is not wrapped.
    """
    if not isinstance(model, TextToImage):
        kind = type(model).__name__
        raise InputError(f"{kind} is no TextToImage; pass memfold.TextToImage(pipeline)")
    if attention is None:
        attention = has_cross_attention(model)
    if guidance_scale is not None:
        name = "true_cfg_scale" if "true_cfg_scale" in model.layout.guided else "guidance_scale"
        options[name] = guidance_scale
    own, uncond = model.conditions(prompt, **_text_options(options))
    with ExitStack() as stack:
        if cond is not None:
            stack.enter_context(conditioned(model, cond))
        monitor = stack.enter_context(Monitor(model, attention=attention, keep=True))
        if change is not None:
            stack.enter_context(steered(model, change))
        x = model.generate(prompt, seeds, **options)
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = guidance_scale
    if scale is None:
        scale = monitor.guidance_scale
    return Generation(
        model=model,
        prompt=prompt,
        seeds=tuple(int(s) for s in seeds),
        guidance_scale=None if scale is None or uncond is None else float(scale),
        cond=own if cond is None else cond,
        uncond=uncond,
        x=x.to(wide),
        views=tuple(monitor.views),
        scores=monitor.scores,
    )


def has_cross_attention(model: TextToImage) -> bool:
    """Whether the network has cross-attention layers to watch."""
    try:
        AttentionWatch(model)
    except ValueError:
        return False
    return True


def _text_options(options: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that change what the text encoders give."""
    names = ("negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
    return {k: v for k, v in options.items() if k in (*names, "max_sequence_length", "clip_skip")}
