"""A gate around a pipeline: it watches each generation, and acts where one leaves the band."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import ATTENTION, SCORES, call_of, weights_of
from memfold.memorization.conditions import FREE, NEVER, arguments_of, glance_of, negative_of
from memfold.sampling.arguments import argument_of, guidance_name, guidance_of
from memfold.sampling.monitor import Monitor
from memfold.types import InputError

from . import METHODS, Mitigation, mitigate
from .base import Weights
from .guarded_run import Outcome, forget, judged_run
from .refusal import MemorizationWarning, Refused

ACTIONS = ("mitigate", "warn", "refuse")


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

    The band holds for the call that was calibrated and for no other. The caller may vary the
    prompt (one text), generator, num_images_per_prompt (up to the band's), output_type and
    return_dict; every other argument, the scheduler, the weights and the adapters' scales must be
    as they were. What could not be judged is refused, in every mode. One call runs at a time;
    calls from other threads wait.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        band: a Band, or its file. A Band made by hand that records no arguments holds for the
            pipeline's own defaults, at any number of steps and guidance.
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

    last: str
    mitigation: Mitigation | None

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
        self.band = band if isinstance(band, Band) else _loaded(band)
        _check_scores(self.band)
        self.band.check(pipeline=self.model.name, **weights_of(self.model))
        self._glance = glance_of(self.model.pipe)
        self.on_memorized, self.method = on_memorized, method
        self.weights, self.method_options = weights, method_options
        self.last, self.mitigation, self._told = "", None, ""
        attention = bool(set(self.band.scores) & set(ATTENTION))
        self._monitor, self._one = Monitor(self.model, attention=attention), threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline.

        Args:
            args: of the pipeline; one prompt, of which several images are judged together.
            kwargs: of the pipeline.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: before anything is drawn: the prompt is no string, an argument, the
                scheduler, the weights or an adapter is not as calibrated, or more images are
                asked for.
            Refused: the generation left the band, and so did the mitigated one; or it could not
                be judged.
        """
        with self._one:
            self.last, self.mitigation = "", None
            out = self._drawn(self._arguments(args, kwargs))
        if self.last == "warned":
            warnings.warn(self._told, MemorizationWarning, stacklevel=2)
        return out

    def _drawn(self, arguments: dict[str, Any]) -> Any:
        """Draw what may be handed out; refuse the rest."""
        kept = _randomness(arguments.get("generator"))
        found = self._run(arguments, stop=self.on_memorized != "warn")
        if found.out is not None:
            self.last = "passed" if found.fired is None else "warned"
            if found.fired is not None:
                self._told = f"{found.fired.reason}; the images may repeat training data"
            return found.out
        if found.wrong:
            raise InputError(f"{self.model.name} refuses its arguments: {found.wrong}")
        if found.fired is None:
            raise self._refused(found, "it could not be judged")
        if self.on_memorized == "refuse":
            raise self._refused(found, "the guard was told to refuse")
        failed = self._mitigate(arguments)
        if failed:
            raise self._refused(found, f"and the mitigation by {self.method} failed: {failed}")
        _restore(arguments.get("generator"), kept)
        again = self._again(arguments)
        if again.out is None:
            why = f"after the mitigation by {self.method}; {found.fired.reason}"
            raise self._refused(again, why)
        self.last = "mitigated"
        return again.out

    def _run(self, arguments: dict[str, Any], **how: Any) -> Outcome:
        images = _images(self.model, arguments)
        return judged_run(self._monitor, self.band, arguments, images=images, **how)

    def _refused(self, outcome: Outcome, why: str) -> Refused:
        self.last, fired = "refused", outcome.fired
        if fired is None:
            return Refused(f"refused: {outcome.unjudged or outcome.wrong}, {why}", outcome.step)
        reason = f"refused: {fired.reason} (false-positive rate {self.band.alpha:g}), {why}"
        return Refused(reason, fired.step, fired.score, fired.bound)

    def _mitigate(self, arguments: dict[str, Any]) -> str:
        """Find the mitigation; say what failed, with no exception of it left."""
        options = {k: v for k, v in arguments.items() if k not in FREE | NEVER}
        if "band" in inspect.signature(METHODS[self.method]).parameters:
            options["band"] = self.band
        prompt = arguments["prompt"]
        try:
            with torch.random.fork_rng(devices=[]):
                self.mitigation = mitigate(
                    self.model, prompt, method=self.method,
                    seeds=range(_images(self.model, arguments)),
                    weights=None if self.weights is None else self.weights(prompt),
                    **(options | self.method_options),
                )  # fmt: skip
        except Exception as error:
            forget(error)
            return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return ""

    def _again(self, arguments: dict[str, Any]) -> Outcome:
        """Draw under the mitigation, watched as before."""
        found = self.mitigation
        if found is None:
            return Outcome(unjudged="there is no mitigation")
        own: dict[str, Any] = {}
        if found.start is not None:
            own["latents"] = found.start(range(_images(self.model, arguments)))
        return self._run({**arguments, **own, "prompt": found.prompt}, found=found)

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Name all arguments of a call, and refuse what the band says nothing about."""
        model, band = self.model, self.band
        try:
            signature = inspect.signature(type(model.pipe).__call__)
            bound = signature.bind(model.pipe, *args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{model.name}: {error}") from None
        bound.pop(next(iter(bound)))  # self
        rest = [n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
        given = {**model.options, **{k: v for n in rest for k, v in bound.pop(n, {}).items()}}
        given |= bound
        unknown = sorted(set(given) - model.accepts | (set(given) & set(rest)))
        if unknown:
            raise InputError(f"{model.name} takes no {', '.join(unknown)}; leave it out")
        now, glance = call_of(model, given), glance_of(model.pipe)
        band.check(**now)
        if glance != self._glance:
            band.check(**weights_of(model))
            self._glance = glance
        if "arguments" not in band.conditions:
            self._check_unrecorded(given, now["arguments"])
        _check_free(given)
        _check_prompt(given, now["arguments"])
        images = _images(model, given)
        if images > band.images:
            raise InputError(
                f"num_images_per_prompt = {images}, and the band was calibrated on "
                f"{band.images} a prompt; draw fewer at a time, or calibrate with more images"
            )
        return given

    def _check_unrecorded(self, given: dict[str, Any], now: dict[str, Any]) -> None:
        """Hold a band that records no arguments to the pipeline's own defaults."""
        model = self.model
        name, w = guidance_name(model), guidance_of(model, given)
        for key, then in arguments_of(model, {}).items():
            if key not in ("num_inference_steps", "guidance_scale", name) and now[key] != then:
                raise InputError(
                    f"{key} = {now[key]!r}, and the band does not say that it was calibrated with "
                    "it; leave it out, or calibrate with it"
                )
        if w is not None and w <= 1 and "cfg_norm" in self.band.scores:
            raise InputError(
                f"{model.name} shows no cfg_norm in this run, which the band judges; give it a "
                "guidance_scale above 1, or calibrate on other scores"
            )


def _loaded(path: str | Path) -> Band:
    """Read a band; one that does not say what it holds for is of no use to a guard."""
    band = Band.load(path)
    missing = [k for k in ("pipeline", "digest", "arguments", "latent_shape")
               if k not in band.conditions]  # fmt: skip
    if missing:
        raise InputError(
            f"{path} does not record {', '.join(missing)}, for which the band holds; calibrate "
            "anew with this memfold"
        )
    return band


def _check_scores(band: Band) -> None:
    known = (*SCORES, *ATTENTION)
    unknown = [name for name in band.scores if name not in known]
    if unknown:
        raise InputError(f"the band is of {', '.join(unknown)}; a guard watches {', '.join(known)}")
    if negative_of(band.conditions.get("arguments", {})) and "cfg_norm" not in band.scores:
        raise InputError("a band for a negative prompt must watch cfg_norm; calibrate with it")


def _check_free(given: dict[str, Any]) -> None:
    """Check what the caller may choose."""
    if not isinstance(given.get("prompt"), str):
        kind = type(given.get("prompt")).__name__
        raise InputError(f"the guard takes one prompt at a time, as a string, not {kind}")
    generator = given.get("generator")
    many = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in many):
        raise InputError("generator: pass a torch.Generator, or a list of one an image")
    if not isinstance(given.get("output_type", ""), str | None):
        raise InputError(f"output_type = {given['output_type']!r}; pass a text such as 'pil'")


def _check_prompt(given: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a prompt that is its own negative: nothing would pull, and no score would show it."""
    same = [k for k, v in negative_of(now).items()
            if isinstance(v, str) and _words(v) == _words(given["prompt"])]  # fmt: skip
    if same:
        raise Refused(
            f"refused: the prompt is its own {same[0]}: no score can judge it; ask without that"
        )


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _images(model: TextToImage, arguments: dict[str, Any]) -> int:
    value = argument_of(model, "num_images_per_prompt", arguments)
    value = 1 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"num_images_per_prompt = {value!r}; take 1 or more")
    return value


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
