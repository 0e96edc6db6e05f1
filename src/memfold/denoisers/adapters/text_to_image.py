"""From an unmodified diffusers text-to-image pipeline to Denoisers of its prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from memfold.denoisers.base import Conditioned, Denoiser
from memfold.denoisers.guidance import Guided, Rule, bound, with_rule
from memfold.denoisers.parameterizations import FlowDenoiser, NetworkDenoiser
from memfold.denoisers.schedules import Schedule
from memfold.types import InputError

from ._calls import Call, Condition, Record, batch, part, unbatch
from ._embedded import Embedded, Leaf, embedded
from ._halves import Halves, read_halves, rule_of
from ._latents import LatentImages, Packing, autoencoder
from ._look import PROBE, Layout, Look, look, louder
from ._pipeline import brief, read_pipeline
from ._runs import Runs, find_network
from ._state import adapters, adapters_off, frozen
from .schedulers import read_schedule
from .scope import own_calls
from .weights import glance

_OTHERS = {"video_length", "audio_length_in_s"}
_GUIDING = re.compile("guidance|cfg|pag_")  # in names of arguments that may change the rule
_SCALES = ("guidance_scale", "true_cfg_scale")  # but w itself
_SAME = 4.0  # the square roots of a rounding that a repeated answer may be off by


class TextToImage(Runs):
    """A diffusers text-to-image pipeline, whose prompts become Denoisers.

    The pipeline is run a few times, with hooks, to see how it calls its network, and stopped after
    four network passes in all; two more repeat its first guided step, and what the pipeline made
    of it must come out. Nothing of it is changed. Points x are its latents (packed as the
    pipeline packs them), in VE coordinates.

    Args:
        pipe: a diffusers pipeline object, the directory of one, or a hub id.
        base: a pipeline to compare with (the model before a fine-tune), or "adapter off" for the
            same pipeline with its LoRA adapters switched off.
        allow_pickle: also read weights from pickles, where `pipe` is no object.
        options: arguments for every call of the pipeline, such as height and width.

    Attributes:
        pipe: the user's own object.
        name: the class of the pipeline.
        accepts: the arguments that the pipeline takes.
        network: its denoising network.
        schedule: from sigma to the network's time.
        layout: how the pipeline calls its network.
        places: where the latent and the time stand among the network's arguments.
        model: a Denoiser that takes a `Condition`.
        base: the base model as a TextToImage; None if there is none.

    Raises:
        InputError: it is no text-to-image pipeline, or calls its network in an unknown way.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        base: Any = None,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(pipe, str | Path):
            pipe = read_pipeline(pipe, allow_pickle=allow_pickle, revision=None)
        super().__init__(pipe, options)
        self._check()
        self.schedule_of_scheduler, kind = read_schedule(pipe.scheduler)
        self._kind = kind
        table = self.schedule_of_scheduler
        found = self._look(kind, table)
        self.layout, self.places = found.layout, found.places
        self._dtype, self._time_dtype = found.dtype, found.time_dtype
        self._like = found.like
        clock = Schedule(table.sigmas * self.layout.louder, table.times)
        self.schedule = clock.retimed(self.layout.scale, self.layout.shift)
        self.model = self._model(found.shape)
        self._rules: dict[str, Rule | None] = {}
        self._repeat(found)
        self.base = self._read_base(base)
        self._conditions: dict[tuple, tuple[Condition, Condition | None]] = {}

    # What memfold asks of it

    def condition(self, prompt: str, **options: Any) -> Condition:
        """Record what the pipeline hands its network for a prompt.

        Args:
            prompt: the words.
            options: further arguments of the pipeline (negative_prompt, height, ...).

        Returns:
            The condition, for `model(x, sigma, condition)`.

        Raises:
            InputError: the pipeline does not take the prompt or an option.
        """
        return self.conditions(prompt, **options)[0]

    def embedded(self, prompt: str, *, gradients: bool = True, **options: Any) -> Embedded:
        """Record the condition of a prompt as a function of its tokens' embeddings.

        The pipeline runs with gradients up to its network; the output of each text encoder's
        embedding table is a leaf of the graph.

        Args:
            prompt: the words.
            gradients: False for the condition and the tokens alone: an ordinary run.
            options: further arguments of the pipeline.

        Returns:
            The condition, whose tensors hang on the leaves.

        Raises:
            InputError: no text encoder with an embedding table was called.
        """
        return embedded(self, self.layout, prompt, options, gradients=gradients)

    def unconditional(self, **options: Any) -> Condition:
        """Record what the pipeline takes for no prompt (its empty or negative prompt).

        Raises:
            InputError: the pipeline has no unconditional half.
        """
        found = self.conditions(PROBE, **options)[1]
        if found is None:
            raise InputError(self._no_half())
        return found

    def conditions(self, prompt: str, **options: Any) -> tuple[Condition, Condition | None]:
        """Record both halves for a prompt; the second is None where the pipeline has none.

        They are recorded anew when a text encoder, its weights or an adapter has changed.

        Raises:
            InputError: the prompt is no string, or the pipeline does not take an option.
        """
        if not isinstance(prompt, str):
            raise InputError(f"a prompt must be one string, not {type(prompt).__name__}")
        self._check_words(prompt, options)
        if any(not isinstance(v, str | int | float | None) for v in options.values()):
            return self._halves(prompt, options)  # no name for a tensor or an image
        key = (glance(self.pipe), prompt, repr(sorted(options.items())))
        if key not in self._conditions:
            if len(self._conditions) > 256:
                self._conditions.clear()
            self._conditions[key] = self._halves(prompt, options)
        return self._conditions[key]

    def denoiser(
        self, prompt: str | None = None, *, guidance_scale: float | None = None, **options: Any
    ) -> Denoiser:
        """Return the Denoiser of a prompt.

        Args:
            prompt: the words; None for the model without a prompt, or for that of
                `prompt_embeds` among the options.
            guidance_scale: w of classifier-free guidance by the pipeline's own rule (mostly
                D_0 + w (D_c - D_0)), both halves with their own Jacobian; None for the prompt
                alone.
            options: further arguments of the pipeline.

        Returns:
            A Denoiser of latents that needs no condition.

        Raises:
            InputError: the pipeline has no unconditional half, guides by a rule that could not be
                read, or does not take an option.
        """
        if prompt is None and "prompt_embeds" in options:
            prompt = ""
        if prompt is None:
            if guidance_scale is not None:
                raise InputError(f"guidance_scale = {guidance_scale} needs a prompt to guide to")
            return Conditioned(self.model, self.unconditional(**options))
        cond, uncond = self.conditions(prompt, **options)
        if guidance_scale is None:
            return Conditioned(self.model, cond)
        rule = self.rule(**options)
        if uncond is None or rule is None:
            raise InputError(self._no_half())
        rule.check()
        inner = with_rule(self.model, rule)
        return Conditioned(Guided(inner, guidance_scale, uncond=uncond), cond)

    @torch.no_grad()
    def rule(self, **options: Any) -> Rule | None:
        """Return what the pipeline makes of both halves of guidance; None where it has none.

        Args:
            options: arguments of the pipeline; where they may change the rule (guidance_rescale,
                cfg_normalization, ...), it is read off a guided run with them.

        Raises:
            InputError: the pipeline does not guide with them.
        """
        changed = {k: v for k, v in options.items() if _GUIDING.search(k) and k not in _SCALES}
        if self.layout.rule is None or not changed:
            return self.model.rule
        key = repr(sorted(changed.items()))
        if key not in self._rules:
            given = changed | self.layout.guided
            record = self.record(PROBE, 1, 3, given)
            halves = read_halves(self, record, self.layout.axes)
            if halves is None or halves.calls != self.layout.calls:
                raise InputError(f"{self.name} does not guide with {', '.join(changed)}; leave out")
            parts, i = halves.predictions(self.layout.prediction), self.layout.conditional or 0
            found = rule_of(self, parts[i], parts[1 - i], record.steps[0].prediction, given)
            self._rules[key] = bound(found, self.predictor)
        return self._rules[key]

    @property
    def has_unconditional(self) -> bool:
        """Whether the pipeline has an unconditional half (classifier-free guidance)."""
        return self.layout.conditional is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.model.shape or ()

    def generate(
        self, prompt: str, seeds: Sequence[int], *, output_type: str = "latent", **options: Any
    ) -> Any:
        """Call the user's own pipeline, as `Runs.generate`; its latents become points x.

        Some pipelines (FLUX.2 Klein) hand out the autoencoder's own latents.
        """
        self._check_words(prompt, options)
        found = super().generate(prompt, seeds, output_type=output_type, **options)
        other = output_type == "latent" and tuple(found.shape[1:]) != self.shape
        packing = getattr(self.model, "packing", None)
        if not other or packing is None or not isinstance(self.model, LatentImages):
            return found
        size = (packing.channels, packing.height, packing.width)
        return self.model.scaled(found) if tuple(found.shape[1:]) == size else found

    def encode(self, images: Float[Tensor, "b c *t h w"]) -> Tensor:
        """Encode images (or videos, with an axis of time) in [0, 1] to latents x."""
        return self.model.encode(images)

    def decode(self, x: Tensor) -> Float[Tensor, "b c *t h w"]:
        """Decode latents x to images; values may leave [0, 1] a little."""
        return self.model.decode(x)

    # How the network is called

    def asked(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the latent and the time among the arguments of a call of the network."""
        z, t = (args[p] if isinstance(p, int) else kwargs[p] for p in self.places)
        return batch(z), torch.as_tensor(t)

    def call_network(self, z: Tensor, times: Tensor, cond: Condition) -> Tensor:
        """Call the network with another latent and time, in its own coordinates."""
        if not isinstance(cond, Condition):
            raise InputError(
                "this model takes a prompt: use denoiser(prompt), or pass a Condition as cond"
            )
        args, kwargs = cond.expanded(len(z))
        dtype, sample, time = self._dtype, *self.places
        values: dict[int | str, Any] = {
            sample: unbatch(z.to(self.device, dtype), self._like),
            time: times.to(self.device, self._time_dtype),
        }
        for place, value in values.items():
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        given = tree_leaves((args, kwargs))
        hangs = any(isinstance(v, Tensor) and v.requires_grad for v in given)
        with frozen(self.network, *given) if hangs else torch.no_grad(), own_calls():
            out = self.network(*args, **kwargs)
        return self.layout.prediction(out).to(z)

    def predictor(self, prediction: Tensor) -> Denoiser:
        """Return the Denoiser whose network answers `prediction`, whatever it is asked."""
        return self._kind(lambda z, t, c: prediction, self.schedule)

    def sigma_at(self, time: float, run: Any = None) -> float:
        """Return the sigma of a time of the scheduler in a run, of the pipeline or a copy of it."""
        clock = self.schedule_of_scheduler
        sigma = float(clock.sigma(torch.tensor([time], dtype=torch.float64)))
        return sigma * self.run_louder(run)

    def sigma_seen(self, time: Tensor, run: Any = None) -> float:
        """Return the sigma of a time that the network was given; half precision rounds it."""
        sigma = float(self.schedule.sigma(time.detach().flatten()[:1].cpu().double()))
        return sigma * self.run_louder(run) / self.layout.louder

    def run_louder(self, run: Any = None) -> float:
        """Return the factor of `Layout.louder` in a run, as its scheduler is set up.

        A pipeline that shifts its flow by the size of the image has another one at each size.
        """
        if run is None or not issubclass(self._kind, FlowDenoiser):
            return self.layout.louder
        found = louder(run.scheduler, self.schedule_of_scheduler)
        return self.layout.louder if found is None else found

    def to_ve(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Bring a latent in the network's coordinates to VE coordinates x."""
        sigma = sigma.to(z).reshape(-1, *[1] * (z.ndim - 1))
        if issubclass(self._kind, FlowDenoiser):
            return z * (1 + sigma)
        return z * (1 + sigma**2).sqrt()

    # Looking at the pipeline

    def _check(self) -> None:
        if self.network.training:
            raise InputError(f"{self.name}'s network is in training mode; call .eval() on it first")
        if "prompt" not in self.accepts:
            raise InputError(
                f"{self.name} takes no prompt: it is no text-to-image pipeline (looked for "
                "`prompt` among its arguments); memfold.load and an audit of images take it"
            )
        video = {"num_frames"} if "num_videos_per_prompt" not in self.accepts else set()
        for name in sorted((_OTHERS | video) & self.accepts):
            raise InputError(
                f"{self.name} takes `{name}`: it draws no single images, which is all that memfold "
                "knows; pass a text-to-image pipeline"
            )

    @torch.no_grad()
    def _repeat(self, found: Look) -> None:
        """Repeat the first step that was seen: the network must answer the same.

        Raises:
            InputError: it does not.
        """
        for z, time, cond, answer in found.known:
            again = self.call_network(z, time.to(self.device), cond).float()
            answer = answer.float()
            room = _SAME * torch.finfo(self._dtype).eps ** 0.5 * float(answer.abs().max())
            off = float((again - answer).abs().max()) if again.shape == answer.shape else inf
            if not off <= room:
                raise InputError(
                    f"{self.name}'s network, asked again at the latent, time and condition of the "
                    f"pipeline's own first step, answers something else (by {off:.3g}, at most "
                    f"{room:.3g} is rounding): memfold does not see all that it depends on"
                )

    def _look(self, kind: type, table: Schedule) -> Look:
        """Look at the pipeline; whatever it or its parts raise becomes one line.

        Raises:
            InputError: it cannot be run, or works in a way that memfold does not know.
        """
        try:
            return look(self, kind, table)
        except InputError as error:
            if not self.wordless:
                raise
            raise InputError(f"{self._no_words()} ({error})") from error
        except Exception as error:
            raise InputError(
                f"{self.name} works in a way that memfold does not know ({brief(error)}); pass a "
                "pipeline of one network and one scheduler"
            ) from error

    def _no_words(self) -> str:
        names = ", ".join(sorted(n for n in self.accepts if n.endswith("prompt_embeds")))
        return (
            f"{self.name} has no text encoder: pass embeddings ({names or 'it takes none'}), to "
            "TextToImage(pipe, prompt_embeds=...) and to denoiser(prompt_embeds=...)"
        )

    def _check_words(self, prompt: str, options: dict[str, Any]) -> None:
        """Refuse words where the pipeline could not read them, or embeddings beside them.

        Raises:
            InputError: it has no text encoder, or both are given.
        """
        if "prompt_embeds" in options and prompt not in ("", PROBE):
            raise InputError(
                f"{self.name} refuses its arguments: a prompt and prompt_embeds; give one of them "
                '(beside embeddings the prompt is "")'
            )
        if self.wordless and prompt not in ("", PROBE) and "prompt_embeds" not in options:
            raise InputError(self._no_words())

    def _halves(self, prompt: str, options: dict[str, Any]) -> tuple[Condition, Condition | None]:
        layout = self.layout
        if layout.conditional is None:
            record = self.record(prompt, 1, 1, layout.plain | options)
            return part(record.calls[0], layout.axes, 0, 1, prompt), None
        record = self.record(prompt, 1, layout.calls, layout.guided | options)
        calls = tuple(record.calls[: layout.calls])
        halves = Halves(layout.calls, layout.axes, calls).conditions(prompt)
        return halves[layout.conditional], halves[1 - layout.conditional]

    def _model(self, shape: tuple[int, ...]) -> Denoiser:
        inner: NetworkDenoiser = self._kind(self.call_network, self.schedule, shape=shape)
        inner.device, inner.dtype, inner.module = self.device, self._dtype, self.network
        if self.layout.rule is not None:
            inner.rule = bound(self.layout.rule, self.predictor)
        vae = autoencoder(self.pipe)
        if vae is None:
            inner.space = "pixels"
            return inner
        return LatentImages(inner, vae, Packing.of(self.pipe, shape, self.options))

    def _read_base(self, base: Any) -> TextToImage | None:
        if base is None or isinstance(base, TextToImage):
            return base
        if isinstance(base, str) and base == "adapter off":
            return _WithoutAdapter(self)
        other = TextToImage(base, **self.options)
        if other.shape != self.shape:
            raise InputError(
                f"the base's latents have shape {other.shape}, the pipeline's {self.shape}; "
                "compare a model with the one that it was made from"
            )
        return other

    def _no_half(self) -> str:
        return (
            f"{self.name} has no unconditional half (its guidance is distilled into the network); "
            "scores of the prompt alone still work: leave guidance_scale out and take the "
            "conditional detectors"
        )


class _WithoutAdapter(TextToImage):
    """The same pipeline with its LoRA adapters switched off while memfold asks it."""

    def __init__(self, inner: TextToImage) -> None:
        layers = adapters(inner.pipe)
        if not layers:
            raise InputError(
                f"base = 'adapter off', but {inner.name} has no adapter loaded; load one, or pass "
                "the base pipeline"
            )
        with adapters_off(inner.pipe):
            pass  # refuses what cannot be asked without its adapter
        self.__dict__.update(inner.__dict__)
        self.base = None
        self._conditions, self._rules = {}, {}
        self.model = self._model(inner.shape)

    def call_network(self, z: Tensor, times: Tensor, cond: Condition) -> Tensor:
        """Call the network without its adapters."""
        with adapters_off(self.pipe):
            return super().call_network(z, times, cond)

    def record(self, *args: Any, **kwargs: Any) -> Record:
        """Run the pipeline without its adapters: its text encoders may have some too."""
        with adapters_off(self.pipe):
            return super().record(*args, **kwargs)


__all__ = ["Call", "Condition", "Embedded", "Layout", "Leaf", "TextToImage", "find_network"]
