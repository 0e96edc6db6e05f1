"""Watch the generation of an unmodified text-to-image pipeline, at no extra network pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._pipeline import brief
from memfold.denoisers.adapters.scope import Scope
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

from .attention import AttentionWatch
from .view import Algebra, StepView, view_of

_STEP = ("model_output", "timestep", "sample")  # how a scheduler's step begins
_SCORES = ("cfg_norm", "guided_score_norm", "bright_ending", "attention_entropy")


class MonitorWarning(UserWarning):
    """A monitor cannot read a run, which goes on as if it were not there."""


class Monitor:
    """Scores of a running generation; the images are those of a run without it, bit for bit.

    ```python
    with memfold.Monitor(pipe) as monitor:
        images = pipe(prompt, num_images_per_prompt=4).images
    monitor.scores["cfg_norm"]  # one row an image, one column a step
    ```

    It watches the runs of this pipeline object in the thread (the `contextvars` context) that
    entered the block, and no others, whatever they share with it; a worker of a thread pool enters
    a monitor of its own. A monitor never ends a run: what it cannot read makes it blind. It warns
    once (`MonitorWarning`), says why in `blind`, and its scores are NaN from that step on.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        attention: also watch the cross-attention, where the network has any: the attention to the
            end token, and the entropy. This computes the attention weights once more.
        on_step: called with each StepView that could be read; what it raises ends the run.
        keep: keep all StepViews in `views`.

    Attributes:
        sigmas: noise standard deviation of every step; NaN where it could not be read.
        views: the StepViews, if kept.
        blind: why the monitor no longer sees; None while it does.
        guidance_scale: what the watched pipeline said of its guidance; None if nothing.
        init_noise_sigma: by which it multiplied its first noise, as its scheduler said.

    Raises:
        InputError: the pipeline is of an unknown kind, or the monitor is in use.
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
        self._stack: ExitStack | None = None
        self._known: dict[tuple[float, float], tuple[float, Algebra]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all steps; entering the block does so too."""
        self.sigmas: list[float] = []
        self.views: list[StepView] = []
        self.blind: str | None = None
        self.guidance_scale: float | None = None
        self.init_noise_sigma = 1.0
        self._columns: list[dict[str, Tensor]] = []
        self._images = 0
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def scores(self) -> dict[str, Float[Tensor, "b s"]]:
        """Score names and their values, a row an image, a column a step; large is suspicious.

        `attention_entropy` alone is small where memorization is likely. A step that does not show
        a score, or that the blind monitor did not see, has NaN.
        """
        names = dict.fromkeys(name for column in self._columns for name in column)
        unseen = torch.full((self._images,), float("nan"))
        return {k: torch.stack([c.get(k, unseen) for c in self._columns], 1) for k in names}

    def __enter__(self) -> Monitor:
        """Begin to watch."""
        if self._stack is not None:
            raise InputError("this monitor watches already; make one for each thread and each run")
        self.reset()
        with ExitStack() as stack:
            scope = stack.enter_context(Scope(self.model.pipe).opened())
            stack.enter_context(scope.hooked(self.model.network, after=self._after))
            stack.enter_context(scope.spied(self.model.pipe.scheduler, self._spy))
            if self._attention is not None:
                stack.enter_context(self._attention)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Take every hook away again."""
        if self._stack is not None:
            self._stack.close()
        self._stack, self._outputs = None, []

    def _after(self, run: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Keep what the network was asked and answered."""
        if self.blind is None:
            try:
                z, t = self.model.asked(args, kwargs)
                self._outputs.append((z, t, self.model.layout.prediction(output)))
            except Exception as error:
                self._lose(error)

    def _spy(self, run: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Read a step before the scheduler makes it."""
        view = None
        if self.blind is None:
            try:
                named = dict(zip(_STEP, args, strict=False)) | kwargs
                view = self._see(run, *(named[k] for k in _STEP))
            except Exception as error:
                self._lose(error)
        if view is None:
            self._skip(args, kwargs)
        elif self.on_step is not None:
            self.on_step(view)
        return step(*args, **kwargs)

    def _at(self, time: float, run: Any) -> tuple[float, Algebra]:
        """Return what a time of the scheduler means; it is worked out once."""
        key = time, self.model.run_louder(run)
        if key not in self._known:
            sigma = self.model.sigma_at(time, run)
            self._known[key] = sigma, Algebra.of(self.model, sigma)
        return self._known[key]

    def _see(self, run: Any, guided: Tensor, timestep: Any, sample: Tensor) -> StepView:
        sigma, algebra = self._at(float(timestep), run)
        n, index = len(sample), len(self.sigmas)
        if index and n != self._images:
            raise InputError(f"a step of {n} images follows one of {self._images} in one block")
        view = view_of(self.model, self._outputs, guided, n, index, sigma=sigma, algebra=algebra)
        self._outputs = []
        if self._attention is not None:
            ends, entropy = self._attention.take(n, view.has_guidance)
            view = replace(view, end_attention=ends, attention_entropy=entropy)
        column = {}
        for name in _SCORES:
            value = getattr(view, name)
            if value is not None and (name != "cfg_norm" or view.has_guidance):
                column[name] = value.detach().float().cpu()
        settled = [view.settled()] if self.keep else []
        self._images = n
        self.guidance_scale = getattr(run, "guidance_scale", None)
        self.init_noise_sigma = float(getattr(run.scheduler, "init_noise_sigma", 1.0))
        self.sigmas.append(view.sigma)
        self._columns.append(column)
        self.views += settled
        return view

    def _lose(self, error: Exception) -> None:
        """Go blind, and say so once."""
        self.blind = brief(error) if not isinstance(error, InputError) else str(error)
        self._outputs = []
        if self._attention is not None:
            self._attention.stop()
        message = (
            f"{self.model.name}: from step {len(self.sigmas) + 1} on the monitor is blind, and its "
            f"scores are NaN ({self.blind}); the run goes on"
        )
        with suppress(MonitorWarning):  # where warnings are errors it must not end the run either
            warnings.warn(message, MonitorWarning, stacklevel=4)

    def _skip(self, args: tuple, kwargs: dict) -> None:
        """Note a step that was not seen."""
        sample = kwargs.get("sample", args[2] if len(args) > 2 else None)
        if not self._images:
            self._images = len(sample) if isinstance(sample, Tensor) and sample.ndim else 1
        names = list(self._columns[0]) if self._columns else ["guided_score_norm"]
        if not self._columns and self.model.has_unconditional:
            names.insert(0, "cfg_norm")
        if not self._columns and self._attention is not None:
            names += ["bright_ending", "attention_entropy"]
        self.sigmas.append(float("nan"))
        self._columns.append(dict.fromkeys(names, torch.full((self._images,), float("nan"))))
