"""A gate around a pipeline: it watches each generation, and acts where one leaves the band."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.sampling.monitor import Monitor, StepView
from memfold.types import InputError

from . import mitigate

ACTIONS = ("mitigate", "warn", "refuse")


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
    def __init__(self, step: int, score: float, bound: float) -> None:
        super().__init__()
        self.step, self.score, self.bound = step, score, bound


class Guard:
    """A pipeline that does not hand out what it knows by heart; called like the pipeline.

    ```python
    guarded = memfold.Guard(pipe, "band.json")  # written by memfold calibrate
    images = guarded(prompt, num_inference_steps=20, guidance_scale=3.0).images
    ```

    It watches the scores of the running generation at no extra network pass. A prompt that stays
    within the band gives the images of the bare pipeline, bit for bit. At the first step at which
    any image of the call leaves the band the run is stopped; then, by `on_memorized`: "mitigate"
    draws the whole call anew under a mitigation, watches that too, and refuses if it fires again;
    "refuse" refuses at once; "warn" goes on and warns.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        band: a Band, or its file.
        on_memorized: "mitigate", "warn" or "refuse".
        method: a mitigation of `METHODS`.
        method_options: its own options.

    Attributes:
        last: what happened in the last call: "passed", "mitigated", "warned" or "refused".

    Raises:
        InputError: an option is unknown, or the band is of another pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        band: Band | str | Path,
        *,
        on_memorized: str = "mitigate",
        method: str = "embedding",
        **method_options: Any,
    ) -> None:
        if on_memorized not in ACTIONS:
            raise InputError(
                f"on_memorized = {on_memorized!r} is unknown; choose from {', '.join(ACTIONS)}"
            )
        self.model = pipe if isinstance(pipe, TextToImage) else TextToImage(pipe)
        self.band = band if isinstance(band, Band) else Band.load(band)
        made_for = self.band.conditions.get("pipeline")
        if made_for is not None and made_for != self.model.name:
            raise InputError(
                f"the band was calibrated for {made_for}, and this is {self.model.name}; "
                "calibrate anew"
            )
        self.on_memorized, self.method, self.method_options = on_memorized, method, method_options
        self.last = ""

    def __call__(self, prompt: str, **arguments: Any) -> Any:
        """Call the pipeline.

        Args:
            prompt: one prompt; several images of it are judged together.
            arguments: of the pipeline.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: the prompt is no string, or guidance differs from the calibrated one.
            Refused: the generation left the band, and so did the mitigated one.
        """
        if not isinstance(prompt, str):
            raise InputError(f"the guard takes one prompt at a time, not {type(prompt).__name__}")
        self._check(arguments)
        try:
            out = self._watched(prompt, arguments, warn=self.on_memorized == "warn")
        except _Fired as fired:
            if self.on_memorized == "refuse":
                raise self._refused(fired, "it was told to refuse") from None
        else:
            return out
        return self._mitigated(prompt, arguments)

    def _check(self, arguments: dict[str, Any]) -> None:
        wanted = self.band.conditions.get("guidance_scale")
        given = arguments.get("guidance_scale")
        if wanted is not None and given is not None and float(given) != float(wanted):
            raise InputError(
                f"guidance_scale = {given}, but the band was calibrated at {wanted}; calibrate "
                "with the guidance that you use"
            )

    def _watched(
        self, prompt: str, arguments: dict[str, Any], *, warn: bool = False, stack: Any = None
    ) -> Any:
        told: list[StepView] = []

        def on_step(view: StepView) -> None:
            score = float(getattr(view, self.band.score).max())
            bound = self.band.limit(view.sigma)
            if score <= bound:
                return
            if not warn:
                raise _Fired(view.index, score, bound)
            if not told:
                told.append(view)
                message = (
                    f"step {view.index + 1}: {self.band.score} {score:.3g} is above {bound:.3g}, "
                    "the limit for ordinary prompts; the images may repeat training data"
                )
                warnings.warn(message, MemorizationWarning, stacklevel=2)

        with Monitor(self.model, on_step=on_step):
            out = self.model.pipe(prompt, **arguments)
        self.last = "warned" if told else "passed"
        return out

    def _mitigated(self, prompt: str, arguments: dict[str, Any]) -> Any:
        options = {
            k: v
            for k, v in arguments.items()
            if k in ("num_inference_steps", "guidance_scale", "height", "width", "negative_prompt")
        }
        seeds: Sequence[int] = range(int(arguments.get("num_images_per_prompt", 1)))
        found = mitigate(
            self.model, prompt, method=self.method, seeds=seeds, **options, **self.method_options
        )
        changed = arguments | {k: v for k, v in found.options.items() if k == "latents"}
        with ExitStack() as stack:
            found.enter(stack)
            try:
                out = self._watched(found.prompt, changed)
            except _Fired as again:
                raise self._refused(again, f"so did the mitigation ({found.method})") from None
        self.last = "mitigated"
        return out

    def _refused(self, fired: _Fired, why: str) -> Refused:
        self.last = "refused"
        return Refused(
            f"refused: at step {fired.step + 1} {self.band.score} was {fired.score:.3g}, above the "
            f"limit {fired.bound:.3g} for ordinary prompts (rate {self.band.alpha:g}), and {why}",
            fired.step,
            fired.score,
            fired.bound,
        )
