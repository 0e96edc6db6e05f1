"""A gate around a pipeline: it watches each generation, and acts where one leaves the band."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import ATTENTION, weights_digest
from memfold.sampling.arguments import argument_of, guidance_of
from memfold.sampling.monitor import Monitor
from memfold.sampling.view import StepView
from memfold.types import InputError

from . import METHODS, Mitigation, mitigate
from .base import Weights

ACTIONS = ("mitigate", "warn", "refuse")
# What the caller decides and a mitigation, which draws images of its own, must not take over.
_CALL = frozenset(
    {"prompt", "generator", "num_images_per_prompt", "output_type", "return_dict", "latents",
     "callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
)  # fmt: skip


class Refused(RuntimeError):
    """The guard does not hand out what was drawn.

    Attributes:
        reason: why, in a sentence.
        step: step at which the score left the band, from 0.
        score: the score there.
        bound: the band's limit there.
    """

    def __init__(self, reason: str, step: int, score: float, bound: float) -> None:
        super().__init__(reason)
        self.reason, self.step, self.score, self.bound = reason, step, score, bound


class MemorizationWarning(UserWarning):
    """A generation left the band of ordinary prompts."""


class _Fired(Exception):
    """Ends a run at the step that left the band."""

    def __init__(self, name: str, step: int, score: float, bound: float) -> None:
        super().__init__()
        self.name, self.step, self.score, self.bound = name, step, score, bound

    def __str__(self) -> str:
        return (
            f"at step {self.step + 1} {self.name} was {self.score:.3g}, above the limit "
            f"{self.bound:.3g} for ordinary prompts"
        )


class Guard:
    """A pipeline that does not hand out what it knows by heart; called like the pipeline.

    ```python
    guarded = memfold.Guard(pipe, "band.json")  # written by memfold calibrate
    images = guarded(prompt, num_inference_steps=20, guidance_scale=3.0).images
    ```

    It watches the scores of the running generation at no extra network pass. A prompt that stays
    within the band gives the images of the bare pipeline, bit for bit. At the first step at which
    any image of the call leaves the band the run is stopped; then, by `on_memorized`: "mitigate"
    draws the whole call anew from the same noise under a mitigation, watches that too, and refuses
    if it fires again; "refuse" refuses at once; "warn" goes on and warns.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        band: a Band, or its file.
        on_memorized: "mitigate", "warn" or "refuse".
        method: a mitigation of `METHODS`.
        weights: from a prompt to the weights of its words, for "rewrite", such as
            `lambda prompt: memfold.attribute(model, prompt)`; without it, "rewrite" weighs the
            words by leaving each out.
        method_options: the method's own options.

    Attributes:
        last: what happened in the last call: "passed", "mitigated", "warned" or "refused".
        mitigation: the mitigation of the last call; None if there was none.

    Raises:
        InputError: an option is unknown, or the band is of another pipeline or other weights.
    """

    def __init__(
        self,
        pipe: Any,
        band: Band | str | Path,
        *,
        on_memorized: str = "mitigate",
        method: str = "reword",
        weights: Callable[[str], Weights] | None = None,
        **method_options: Any,
    ) -> None:
        for name, value, known in (
            ("on_memorized", on_memorized, ACTIONS),
            ("method", method, tuple(METHODS)),
        ):
            if value not in known:
                raise InputError(f"{name} = {value!r} is unknown; choose from {', '.join(known)}")
        self.model = pipe if isinstance(pipe, TextToImage) else TextToImage(pipe)
        self.band = band if isinstance(band, Band) else Band.load(band)
        self.band.check(pipeline=self.model.name, digest=weights_digest(self.model.network))
        self.on_memorized, self.method = on_memorized, method
        self.weights, self.method_options = weights, method_options
        self.last, self.mitigation = "", None
        attention = bool(set(self.band.scores) & set(ATTENTION))
        self._monitor = Monitor(self.model, attention=attention)

    last: str
    mitigation: Mitigation | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline.

        Args:
            args: of the pipeline; one prompt, of which several images are judged together.
            kwargs: of the pipeline.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: the prompt is no string, the pipeline does not take an argument, guidance
                differs from the calibrated one, or more images are asked for.
            Refused: the generation left the band, and so did the mitigated one.
        """
        arguments = self._arguments(args, kwargs)
        prompt = arguments["prompt"]
        self.last, self.mitigation = "", None
        kept = _randomness(arguments.get("generator"))
        try:
            return self._watched(arguments, warn=self.on_memorized == "warn")
        except _Fired as fired:
            self._released()
            if self.on_memorized == "refuse":
                raise self._refused(fired, "the guard was told to refuse") from None
            first = str(fired)
        options = {k: v for k, v in arguments.items() if k not in _CALL}
        if "band" in inspect.signature(METHODS[self.method]).parameters:
            options["band"] = self.band
        seeds = range(int(argument_of(self.model, "num_images_per_prompt", arguments) or 1))
        with torch.random.fork_rng(devices=[]):
            self.mitigation = mitigate(
                self.model, prompt, method=self.method, seeds=seeds,
                weights=None if self.weights is None else self.weights(prompt),
                **(options | self.method_options),
            )  # fmt: skip
        _restore(arguments.get("generator"), kept)
        return self._again(self.mitigation, arguments, first)

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Name all arguments of a call, and refuse what the band says nothing about."""
        try:
            call = inspect.signature(type(self.model.pipe).__call__)
            bound = call.bind(self.model.pipe, *args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{self.model.name}: {error}") from error
        bound.pop(next(iter(bound)))  # self
        given = {**self.model.options, **bound.pop("kwargs", {}), **bound}
        unknown = sorted(set(given) - self.model.accepts)
        if unknown:
            raise InputError(f"{self.model.name} takes no {', '.join(unknown)}; leave it out")
        if not isinstance(given.get("prompt"), str):
            kind = type(given.get("prompt")).__name__
            raise InputError(f"the guard takes one prompt at a time, as a string, not {kind}")
        self.band.check(guidance_scale=guidance_of(self.model, given))
        images = int(argument_of(self.model, "num_images_per_prompt", given) or 1)
        if images > self.band.images:
            raise InputError(
                f"num_images_per_prompt = {images}, and the band was calibrated on "
                f"{self.band.images} a prompt; draw fewer at a time, or calibrate with more images"
            )
        return given

    def _watched(
        self, arguments: dict[str, Any], *, warn: bool = False, found: Mitigation | None = None
    ) -> Any:
        told: list[_Fired] = []

        def on_step(view: StepView) -> None:
            fired = None if told else self._fired(view)
            if fired is not None and not warn:
                raise fired
            if fired is not None:
                told.append(fired)

        self._monitor.on_step = on_step
        with ExitStack() as stack:
            # The monitor first: a steered step must not hide what the network said from it.
            stack.enter_context(self._monitor)
            if found is not None:
                found.enter(stack)
            out = self.model.pipe(**arguments)
        for fired in told:
            message = f"{fired}; the images may repeat training data"
            warnings.warn(message, MemorizationWarning, stacklevel=3)
        self.last = "warned" if told else "passed"
        return out

    def _fired(self, view: StepView) -> _Fired | None:
        for name in self.band.scores:
            values = getattr(view, name)
            score = float("nan") if values is None else float(values.max())  # NaN if any is
            if isnan(score):
                raise InputError(
                    f"{self.model.name} shows no {name} in this run, which the band judges; give "
                    "it a guidance_scale above 1, or calibrate on other scores"
                )
            limit = self.band.limit(view.sigma, name)
            if score > limit:
                return _Fired(name, view.index, score, limit)
        return None

    def _again(self, found: Mitigation, arguments: dict[str, Any], first: str) -> Any:
        """Draw under the mitigation, watched as before."""
        images = int(argument_of(self.model, "num_images_per_prompt", arguments) or 1)
        own = {} if found.start is None else {"latents": found.start(range(images))}
        try:
            out = self._watched({**arguments, **own, "prompt": found.prompt}, found=found)
        except _Fired as again:
            self._released()
            raise self._refused(again, f"after the mitigation by {found.method}; {first}") from None
        self.last = "mitigated"
        return out

    def _released(self) -> None:
        """Let a pipeline that off-loads its parts end the run that was stopped."""
        free = getattr(self.model.pipe, "maybe_free_model_hooks", None)
        if free is not None:
            free()

    def _refused(self, fired: _Fired, why: str) -> Refused:
        self.last = "refused"
        reason = f"refused: {fired} (false-positive rate {self.band.alpha:g}), {why}"
        return Refused(reason, fired.step, fired.score, fired.bound)


def _randomness(generator: Any) -> list[torch.Tensor]:
    """Keep the states of the caller's generators, or of the global one."""
    if generator is None:
        return [torch.get_rng_state()]
    many = generator if isinstance(generator, list) else [generator]
    return [g.get_state() for g in many]


def _restore(generator: Any, kept: list[torch.Tensor]) -> None:
    if generator is None:
        torch.set_rng_state(kept[0])
        return
    many = generator if isinstance(generator, list) else [generator]
    for own, state in zip(many, kept, strict=True):
        own.set_state(state)
