"""Watch the generation of an unmodified text-to-image pipeline, at no extra network pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._calls import is_own_call, spied
from memfold.denoisers.adapters.text_to_image import TextToImage

from .attention import AttentionWatch
from .view import Algebra, StepView, view_of


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
        self._known: dict[float, tuple[float, Algebra]] = {}
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

    def _at(self, time: float) -> tuple[float, Algebra]:
        """Return what a time of the scheduler means; it is worked out once."""
        if time not in self._known:
            sigma = self.model.sigma_at(time)
            self._known[time] = sigma, Algebra.of(self.model, sigma)
        return self._known[time]

    def _see(self, guided: Tensor, n: int, time: float) -> None:
        sigma, algebra = self._at(time)
        view = view_of(
            self.model, self._outputs, guided, n, len(self.sigmas), sigma=sigma, algebra=algebra
        )
        self._outputs = []
        if self._attention is not None:
            ends, entropy = self._attention.take(n, view.has_guidance)
            view = replace(view, end_attention=ends, attention_entropy=entropy)
        self.sigmas.append(view.sigma)
        for name in ("cfg_norm", "guided_score_norm", "bright_ending", "attention_entropy"):
            value = getattr(view, name)
            if value is not None and (name != "cfg_norm" or view.has_guidance):
                self._columns.setdefault(name, []).append(value.detach().float().cpu())
        if self.keep:
            self.views.append(view.settled())
        if self.on_step is not None:
            self.on_step(view)
