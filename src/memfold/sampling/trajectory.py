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
from memfold.denoisers.base import Denoiser
from memfold.denoisers.guidance import Rule, with_rule
from memfold.types import InputError

from .arguments import guidance_name, guidance_of, rule_of
from .attention import AttentionWatch
from .memo import Memo
from .monitor import Monitor
from .steering import Change, conditioned, steered
from .training import TrainingRows
from .view import StepView

# Arguments of a run that its network is not told of.
_RUN = {
    "num_inference_steps", "timesteps", "sigmas", "eta", "latents", "guidance_rescale",
    "cfg_normalization", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """Images of one prompt and the steps that led to them.

    Attributes:
        model: the pipeline.
        prompt: the words.
        seeds: one an image.
        guidance_scale: w of classifier-free guidance, as the run used it: that of the prompt alone
            where the run had no guidance; None where the pipeline has none. Guidance that is
            distilled into the network is part of the condition.
        cond: condition of the prompt.
        uncond: condition of no prompt; None where the pipeline has none.
        x: final latents in VE coordinates, shape (b, *d).
        views: the steps; kept on the CPU.
        scores: the monitor's scores, name -> (b, steps).
        training: training images to compare with; None for none.
        rule: what the run made of both halves of guidance; None where it had one alone.
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
    rule: Rule | None = None
    memo: Memo = field(init=False, repr=False, compare=False, default_factory=Memo)

    @cached_property
    @torch.no_grad()
    def images(self) -> Float[Tensor, "b c *t h w"]:
        """The images, in [0, 1]; of a video with an axis of time."""
        return self.model.decode(self.x).clamp(0, 1)

    @cached_property
    def network(self) -> Denoiser:
        """The pipeline's Denoiser, guided as this run was."""
        return self.model.model if self.rule is None else with_rule(self.model.model, self.rule)

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
        guidance_scale: w of classifier-free guidance, which is switched on for it (a pipeline with
            `true_cfg_scale` is given a negative prompt too); where the network has its guidance
            distilled into it, the scale that it is told. None for the pipeline's default.
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
        options = _switched_on(model, guidance_scale, options)
    own, uncond = model.conditions(prompt, **_condition_options(model, options))
    with ExitStack() as stack:
        if cond is not None:
            stack.enter_context(conditioned(model, cond))
        monitor = stack.enter_context(Monitor(model, attention=attention, keep=True))
        if change is not None:
            stack.enter_context(steered(model, change))
        x = model.generate(prompt, seeds, **options)
    wide = torch.promote_types(x.dtype, torch.float32)
    return Generation(
        model=model,
        prompt=prompt,
        seeds=tuple(int(s) for s in seeds),
        guidance_scale=_scale(model, monitor.views, options),
        cond=own if cond is None else cond,
        uncond=uncond,
        x=x.to(wide),
        views=tuple(monitor.views),
        scores=monitor.scores,
        rule=rule_of(model, options),
    )


def has_cross_attention(model: TextToImage) -> bool:
    """Whether the network has cross-attention layers to watch."""
    try:
        AttentionWatch(model)
    except ValueError:
        return False
    return True


def _switched_on(model: TextToImage, w: float, options: dict[str, Any]) -> dict[str, Any]:
    """Return options that guide with w; what else that needs (a negative prompt) comes along."""
    on = model.layout.guided if model.has_unconditional and w != 1 else {}
    return on | options | {guidance_name(model) or "guidance_scale": w}


def _condition_options(model: TextToImage, options: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that change what the network is given beside latent and time."""
    left = _RUN | {guidance_name(model)}
    return {k: v for k, v in options.items() if k not in left}


def _scale(model: TextToImage, views: list[StepView], options: dict[str, Any]) -> float | None:
    """Return the w of a run: what was asked for, if the run did ask its network twice."""
    w = guidance_of(model, options)
    if w is None or any(view.has_guidance for view in views):
        return w
    return 1.0 if model.layout.rule is None else model.layout.rule.off
