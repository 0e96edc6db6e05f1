"""Watch the generation of an unmodified text-to-image pipeline, at no extra network pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._calls import is_own_call, spied
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.tensors import expand, per_sample
from memfold.types import InputError

from .attention import AttentionWatch


@dataclass(frozen=True)
class StepView:
    """What a pipeline's run shows at one step, in VE coordinates.

    Attributes:
        index: number of the step, from 0.
        sigma: noise standard deviation.
        x: the latents, shape (b, *d).
        conditional: D_c(x), shape (b, *d).
        unconditional: D_0(x), shape (b, *d); None where the run uses no guidance.
        guided: what the pipeline made of both, D_w(x), shape (b, *d).
        end_attention: attention of each place to the prompt's end token, shape (b, h, w); None
            where it was not asked for.
        attention_entropy: entropy of the attention over the tokens, nats, shape (b,); as before.
    """

    index: int
    sigma: float
    x: Float[Tensor, "b *d"]
    conditional: Float[Tensor, "b *d"]
    unconditional: Float[Tensor, "b *d"] | None
    guided: Float[Tensor, "b *d"]
    end_attention: Float[Tensor, "b h w"] | None = None
    attention_entropy: Float[Tensor, " b"] | None = None

    @property
    def cfg_norm(self) -> Float[Tensor, " b"]:
        """|eps_c - eps_0| = |D_c - D_0| / sigma (Wen et al. 2024); NaN without guidance."""
        return self._difference().flatten(1).norm(dim=1)

    @property
    def guided_score_norm(self) -> Float[Tensor, " b"]:
        """|s_w| = |D_w - x| / sigma^2 (Ross et al. 2025)."""
        return (self.guided - self.x).flatten(1).norm(dim=1) / self.sigma**2

    @property
    def bright_ending(self) -> Float[Tensor, " b"] | None:
        """CFG norm weighted by the attention to the end token (Chen et al. 2025)."""
        if self.end_attention is None or self.x.ndim != 4:
            return None
        mask = self.end_attention[:, None]
        if mask.shape[2:] != self.x.shape[2:]:
            mask = torch.nn.functional.interpolate(mask, size=self.x.shape[2:], mode="bilinear")
        return (self._difference() * mask).flatten(1).norm(dim=1) / mask.flatten(1).mean(1)

    @property
    def alignment(self) -> Float[Tensor, " b"]:
        """Cosine between s_c - s_0 and s_0; NaN without guidance."""
        a = self._difference().flatten(1)
        base = self.unconditional if self.unconditional is not None else self.conditional
        return torch.cosine_similarity(a, (base - self.x).flatten(1), dim=1)

    def _difference(self) -> Tensor:
        if self.unconditional is None:
            return torch.full_like(self.conditional, float("nan"))
        return (self.conditional - self.unconditional) / self.sigma


class Monitor:
    """Scores of a running generation; the images are those of a run without it, bit for bit.

    ```python
    with memfold.Monitor(pipe) as monitor:
        images = pipe(prompt, num_images_per_prompt=4).images
    monitor.scores["cfg_norm"]  # one row an image, one column a step
    ```

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        attention: also watch the cross-attention, where the network has any: the attention to the
            end token, and the entropy. This computes the attention weights once more.
        on_step: called with each StepView; what it raises ends the run.
        keep: keep all StepViews in `views`.

    Attributes:
        sigmas: noise standard deviation of every step.
        views: the StepViews, if kept.

    Raises:
        InputError: the pipeline is of an unknown kind, or runs in an unknown way.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        attention: bool = False,
        on_step: Callable[[StepView], None] | None = None,
        keep: bool = False,
    ) -> None:
        self.model = pipe if isinstance(pipe, TextToImage) else TextToImage(pipe)
        self.on_step, self.keep = on_step, keep
        self._attention = AttentionWatch(self.model) if attention else None
        self._stack = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Forget all steps; entering the block does so too."""
        self.sigmas: list[float] = []
        self.views: list[StepView] = []
        self._columns: dict[str, list[Tensor]] = {}
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def scores(self) -> dict[str, Float[Tensor, "b s"]]:
        """Score names and their values, a row an image, a column a step; large is suspicious.

        `attention_entropy` alone is small where memorization is likely.
        """
        return {k: torch.stack(v, 1) for k, v in self._columns.items() if len(v)}

    def __enter__(self) -> Monitor:
        """Begin to watch."""
        self.reset()
        network, scheduler = self.model.network, self.model.pipe.scheduler

        def spy(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not is_own_call():
                given = zip(("model_output", "timestep", "sample"), args, strict=False)
                names = dict(given) | kwargs
                self._see(names["model_output"], len(names["sample"]), float(names["timestep"]))
            return step(*args, **kwargs)

        places = self.model.places

        def after(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
            if is_own_call():
                return
            z, t = (args[p] if isinstance(p, int) else kwargs[p] for p in places)
            self._outputs.append((z, torch.as_tensor(t), self.model.layout.prediction(output)))

        handle = network.register_forward_hook(after, with_kwargs=True)
        self._stack.callback(handle.remove)
        self._stack.enter_context(spied(scheduler, spy))
        if self._attention is not None:
            self._stack.enter_context(self._attention)
        return self

    def __exit__(self, *error: object) -> None:
        """Take every hook away again."""
        self._stack.close()

    def _see(self, guided: Tensor, n: int, time: float) -> None:
        sigma = self.model.sigma_at(time)
        view = view_of(self.model, self._outputs, guided, n, len(self.sigmas), sigma=sigma)
        self._outputs = []
        if self._attention is not None:
            ends, entropy = self._attention.take(n, view.unconditional is not None)
            view = StepView(**vars(view) | {"end_attention": ends, "attention_entropy": entropy})
        self.sigmas.append(view.sigma)
        for name in ("cfg_norm", "guided_score_norm", "bright_ending", "attention_entropy"):
            value = getattr(view, name)
            if value is not None and not (name == "cfg_norm" and view.unconditional is None):
                self._columns.setdefault(name, []).append(value.detach().float().cpu())
        if self.keep:
            self.views.append(view)
        if self.on_step is not None:
            self.on_step(view)


def view_of(
    model: TextToImage,
    outputs: list[tuple[Tensor, Tensor, Tensor]],
    guided: Tensor,
    n: int,
    index: int,
    *,
    sigma: float | None = None,
) -> StepView:
    """Turn the network calls of one step into D_c, D_0 and D_w.

    Args:
        model: the pipeline.
        outputs: (latent, time, prediction) of each call since the last step.
        guided: what the pipeline handed its scheduler.
        n: images in the run.
        index: number of the step.
        sigma: noise standard deviation; None to read it off the network's time, which half
            precision rounds.

    Returns:
        The view.

    Raises:
        InputError: the calls fit neither a run with guidance nor one without.
    """
    if not outputs:
        raise InputError("the scheduler made a step without a call of the network")
    z, t, first = outputs[0]
    conditional = model.layout.conditional or 0
    if len(z) == n and len(outputs) == 1:
        halves = [first]
    elif len(z) == 2 * n and len(outputs) == 1:
        halves = list(first.chunk(2))
    elif len(z) == n and len(outputs) == 2:
        halves = [first, outputs[1][2]]
    else:
        raise InputError(
            f"{model.name} called its network {len(outputs)} times with a batch of {len(z)} for "
            f"{n} images in one step; memfold knows one call of {n} or {2 * n}, or two of {n}"
        )
    if sigma is None:
        sigma = float(model.schedule.sigma(t.detach().flatten()[:1].cpu().double()))
    wide = torch.promote_types(z.dtype, torch.float32)
    x = model.to_ve(z[:n].to(wide), torch.tensor([sigma]))
    s = expand(sigma, x)

    def denoised(prediction: Tensor) -> Tensor:
        return model.predictor(prediction.to(wide)).denoise(x, s, None)

    both = len(halves) == 2
    return StepView(
        index=index,
        sigma=sigma,
        x=x,
        conditional=denoised(halves[conditional] if both else halves[0]),
        unconditional=denoised(halves[1 - conditional]) if both else None,
        guided=denoised(guided),
    )


def energy(x: Tensor) -> Float[Tensor, " b"]:
    """Squared norm of each sample."""
    return per_sample(x**2)
