"""One run of a guarded pipeline: judged at every step, and handed out only if all were judged."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters._state import borrowed
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.memorization.conditions import negative_of
from memfold.sampling.monitor import Monitor
from memfold.sampling.view import StepView
from memfold.types import InputError

from .base import Mitigation

PULL = 0.5  # least share of the ordinary pull against a negative prompt (docs/prevent.md)


@dataclass(frozen=True)
class Fired:
    """The first step at which a score left the band; step -1 where none could be judged."""

    step: int
    score: float
    bound: float
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What came of a run: an image, or why there is none.

    Attributes:
        out: what the pipeline returned; None unless every step was judged.
        fired: where the run left the band; None where it did not.
        unjudged: why it could not be judged; "" where it was.
        wrong: what the pipeline says is wrong with its arguments; "" where nothing is.
    """

    out: Any = None
    fired: Fired | None = None
    unjudged: str = ""
    wrong: str = ""
    step: int = 0


class _Stop(Exception):
    """Ends a run that left the band, or cannot be judged."""


class _Judge:
    """Judges the steps of one run as the monitor shows them; keeps numbers, no latents."""

    def __init__(self, model: TextToImage, band: Band, images: int, *, stop: bool) -> None:
        self.model, self.band, self.images, self.stop = model, band, images, stop
        self.fired: Fired | None = None
        self.unjudged = ""
        self.steps = 0
        self.exact = "latent_shape" in band.conditions
        self._pull: list[Tensor] = []

    def __call__(self, view: StepView) -> None:
        try:
            self.unjudged = self._against(view) or self._score(view)
        except InputError as error:
            self.unjudged = str(error)
        if self.unjudged or (self.fired is not None and self.stop):
            raise _Stop
        self.steps += 1

    def end(self, blind: str | None, seen: int) -> str:
        """Say why the whole run cannot be judged; nothing where it can."""
        wanted = len(self.band.sigmas)
        if blind:
            return f"the run could not be watched ({blind})"
        if self.unjudged or not self.steps:
            return self.unjudged or "no step of the run was seen"
        if self.steps != seen:
            return f"{self.steps} of {seen} steps were judged"
        if self.exact and self.steps != wanted:
            return f"{self.steps} steps were judged of the {wanted} that were calibrated"
        if self._pull and float(torch.stack(self._pull).mean(0).min()) < PULL:
            return (
                "the prompt pulls too little against the negative prompt for the scores to judge "
                f"it (less than {PULL:g} of what ordinary prompts do)"
            )
        return ""

    def _against(self, view: StepView) -> str:
        """Say where a step is none of those that were calibrated."""
        if not self.exact:
            return ""
        shape, then = list(view.latent.shape[1:]), list(self.band.conditions["latent_shape"])
        if shape != then:
            return f"the latents have shape {shape}, and the band was calibrated at {then}"
        if not any(isclose(view.sigma, s, rel_tol=1e-4) for s in self.band.sigmas):
            return f"sigma = {view.sigma:.4g} is no noise level that the band was calibrated at"
        return ""

    def _score(self, view: StepView) -> str:
        """Compare the scores of a step with the limits; say which cannot be judged."""
        for name in self.band.scores:
            values = getattr(view, name)
            if values is None or not bool(torch.isfinite(values).all()):
                return f"{self.model.name} shows no finite {name} in this run, which is judged"
            if values.numel() != self.images:
                return f"the run draws {values.numel()} images, and {self.images} were asked for"
            score, limit = float(values.max()), self.band.limit(view.sigma, name)
            if self.fired is None and not score <= limit:
                self.fired = Fired(
                    view.index, score, limit,
                    f"at step {view.index + 1} {name} was {score:.3g}, above the limit "
                    f"{limit:.3g} for ordinary prompts",
                )  # fmt: skip
        if negative_of(self.band.conditions.get("arguments", {})):
            sigmas, centre = self.band.sigmas, self.band.centre["cfg_norm"]
            at = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - view.sigma))
            self._pull.append(view.cfg_norm.detach().float().cpu() / centre[at])
        return ""


def judged_run(
    monitor: Monitor,
    band: Band,
    arguments: Mapping[str, Any],
    *,
    images: int,
    stop: bool = True,
    found: Mitigation | None = None,
) -> Outcome:
    """Call the pipeline and judge every step of it.

    No exception of the run leaves this function: its frames hold latents, and are cleared. The run
    is that of a borrowed copy of the pipeline, so that nothing of it stays in the user's objects.

    Args:
        monitor: of the pipeline; free to use.
        band: the limits.
        arguments: of the pipeline.
        images: how many images the run draws.
        stop: stop the run at the first step that leaves the band.
        found: a mitigation in force.

    Returns:
        What came of it.
    """
    model = monitor.model
    judge = _Judge(model, band, images, stop=stop)
    monitor.on_step = judge
    out, said, wrong = None, "", ""
    try:
        with ExitStack() as stack:
            # The monitor first: a steered step must not hide what the network said from it.
            stack.enter_context(monitor)
            if found is not None:
                found.enter(stack)
            out = _called(model, arguments)
        said = judge.end(monitor.blind, len(monitor.sigmas))
    except _Stop as error:
        forget(error)
        said = judge.unjudged
    except Exception as error:
        forget(error)
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        bad = isinstance(error, ValueError | TypeError) and not isinstance(error, InputError)
        if bad and not judge.steps and not judge.unjudged:
            wrong = text
        else:
            said = f"the run failed ({text})"
    except BaseException as error:
        forget(error)
        raise
    finally:
        monitor.on_step = None
    if said or wrong:
        return Outcome(unjudged=said, wrong=wrong, step=judge.steps)
    if out is None or (judge.fired is not None and stop):
        return Outcome(fired=judge.fired)
    return Outcome(out=out, fired=judge.fired)


def _called(model: TextToImage, arguments: Mapping[str, Any]) -> Any:
    """Call a copy of the pipeline: schedulers keep what the network foresaw for their next step."""
    with borrowed(model.pipe) as pipe:
        pipe._progress_bar_config = dict(getattr(model.pipe, "_progress_bar_config", None) or {})
        try:
            return pipe(**arguments)
        finally:
            free = getattr(pipe, "maybe_free_model_hooks", None)
            if free is not None:  # a run that was stopped leaves its parts where they were
                free()


def forget(error: BaseException) -> None:
    """Clear the frames of an exception and of all that it came from: they hold latents.

    Args:
        error: was caught; frames that still run are left alone.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            todo += [one.__cause__, one.__context__]
