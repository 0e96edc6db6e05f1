"""From an unmodified diffusers text-to-image pipeline to Denoisers of its prompts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten

from memfold.denoisers.base import Conditioned, Denoiser
from memfold.denoisers.guidance import Guided
from memfold.denoisers.parameterizations import FlowDenoiser, NetworkDenoiser
from memfold.denoisers.schedules import Schedule
from memfold.types import InputError

from ._calls import (
    Call,
    Condition,
    Record,
    Stop,
    batched_leaves,
    first_tensor,
    own_calls,
    part,
    recorded,
    same,
)
from ._latents import LatentImages, Packing
from ._pipeline import brief, read_pipeline
from .diffusers import read_schedule

PROBE = "a photo of a dog"  # any words: only the structure of the calls is read
NETWORKS = ("unet", "transformer")
_GUIDED = 5.0
_OFFLOADING = frozenset({"_all_hooks", "_offload_device", "_offload_gpu_id"})  # diffusers' own
_ROUNDING = 0.03  # times that are rounded to whole rows of the table


@dataclass(frozen=True)
class Layout:
    """How a pipeline calls its network.

    Attributes:
        batched: for each leaf of the arguments, whether its first axis is the batch.
        conditional: index of the conditional half (or call); None if no guidance was seen.
        calls: 1 if both halves come in one batch, 2 if in two calls.
        scale: the network's time is `scale * t + shift`, with the scheduler's own t.
        shift: see there.
        louder: the pipeline's sigma at a time, over that of the scheduler's table (a flow that the
            pipeline shifts by the size of the image without telling the network).
        output: "as it is", "first half" (of doubled channels) or "negative".
        guided: pipeline arguments that switch guidance on.
        plain: pipeline arguments that switch it off.
    """

    batched: tuple[bool, ...]
    conditional: int | None
    calls: int
    scale: float
    shift: float
    louder: float
    output: str
    guided: dict[str, Any]
    plain: dict[str, Any]

    def prediction(self, output: Any) -> Tensor:
        """Bring a network's output to what the pipeline hands its scheduler."""
        return _OUTPUTS[self.output](first_tensor(output))


_OUTPUTS = {
    "as it is": lambda out: out,
    "first half": lambda out: out.chunk(2, dim=1)[0],
    "negative": lambda out: -out,
    "first half, negative": lambda out: -out.chunk(2, dim=1)[0],
}


@dataclass(frozen=True)
class Leaf:
    """The embeddings of a prompt's tokens in one text encoder.

    Attributes:
        encoder: name of the component, such as "text_encoder_2".
        ids: the tokens, shape (1, tokens).
        embeddings: their embeddings, a leaf of the graph, shape (1, tokens, width).
    """

    encoder: str
    ids: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Embedded:
    """A condition as a function of its tokens' embeddings.

    Attributes:
        cond: the condition; its tensors hang on the leaves.
        leaves: one for each text encoder that was called.
    """

    cond: Condition
    leaves: tuple[Leaf, ...]


class TextToImage:
    """A diffusers text-to-image pipeline, whose prompts become Denoisers.

    The pipeline is run three times, with hooks, to see how it calls its network, and stopped after
    three network passes in all; nothing of it is changed. Points x are its latents (packed as the
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
        self.pipe, self.options, self.name = pipe, options, type(pipe).__name__
        self.network = find_network(pipe)
        self.accepts = set(inspect.signature(type(pipe).__call__).parameters)
        self._check()
        self.schedule_of_scheduler, kind = read_schedule(pipe.scheduler)
        self._kind = kind
        self.layout, shape = self._look()
        table = self.schedule_of_scheduler
        self._clock = Schedule(table.sigmas * self.layout.louder, table.times)
        self.schedule = self._clock.retimed(self.layout.scale, self.layout.shift)
        self.model = self._model(shape)
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

    def embedded(self, prompt: str, **options: Any) -> Embedded:
        """Record the condition of a prompt as a function of its tokens' embeddings.

        The pipeline runs with gradients up to its network; the output of each text encoder's
        embedding table is a leaf of the graph.

        Args:
            prompt: the words.
            options: further arguments of the pipeline.

        Returns:
            The condition, whose tensors hang on the leaves.

        Raises:
            InputError: no text encoder with an embedding table was called.
        """
        leaves: list[Leaf] = []
        with ExitStack() as stack:
            for name, part_ in self.pipe.components.items():
                if name.startswith("text_encoder") and hasattr(part_, "get_input_embeddings"):
                    hook = _leaf_hook(name, leaves)
                    for table in _tables(part_):
                        handle = table.register_forward_hook(hook, with_kwargs=True)
                        stack.callback(handle.remove)
                    stack.enter_context(_frozen(part_))
            stack.enter_context(torch.enable_grad())
            arguments = self.layout.plain | options
            call = self._record(prompt, 1, 1, arguments, gradients=True).calls[0]
        cond = part(call, self.layout.batched, 0, 1, prompt)
        given = [
            leaf for leaf in tree_flatten((cond.args, cond.kwargs))[0] if isinstance(leaf, Tensor)
        ]
        if not leaves or not any(leaf.requires_grad for leaf in given):
            raise InputError(
                f"{self.name}: the condition does not hang on a text encoder's embedding table "
                "(looked for text_encoder* with get_input_embeddings); take wrt='prompt'"
            )
        return Embedded(cond, tuple(leaves))

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
        """Record both halves for a prompt; the second is None where the pipeline has none."""
        if not isinstance(prompt, str):
            raise InputError(f"a prompt must be one string, not {type(prompt).__name__}")
        key = (prompt, repr(sorted(options.items())))
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
            prompt: the words; None for the model without a prompt.
            guidance_scale: classifier-free guidance D_0 + w (D_c - D_0), both halves with their
                own Jacobian; None for the prompt alone.
            options: further arguments of the pipeline.

        Returns:
            A Denoiser of latents that needs no condition.

        Raises:
            InputError: the pipeline has no unconditional half, or does not take an option.
        """
        if prompt is None:
            if guidance_scale is not None:
                raise InputError(f"guidance_scale = {guidance_scale} needs a prompt to guide to")
            return Conditioned(self.model, self.unconditional(**options))
        cond, uncond = self.conditions(prompt, **options)
        if guidance_scale is None:
            return Conditioned(self.model, cond)
        if uncond is None:
            raise InputError(self._no_half())
        return Conditioned(Guided(self.model, guidance_scale, uncond=uncond), cond)

    @property
    def has_unconditional(self) -> bool:
        """Whether the pipeline has an unconditional half (classifier-free guidance)."""
        return self.layout.conditional is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.model.shape or ()

    def encode(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Encode images in [0, 1] to latents x."""
        return self.model.encode(images)

    def decode(self, x: Tensor) -> Float[Tensor, "b c h w"]:
        """Decode latents x to images; values may leave [0, 1] a little."""
        return self.model.decode(x)

    @torch.no_grad()
    def generate(
        self, prompt: str, seeds: Sequence[int], *, output_type: str = "latent", **options: Any
    ) -> Any:
        """Call the user's own pipeline, with one generator for each seed.

        Args:
            prompt: the words.
            seeds: one an image.
            output_type: "latent" (points x), "pil", "pt" or "np".
            options: further arguments of the pipeline (num_inference_steps, guidance_scale, ...).

        Returns:
            What the pipeline returns as its images.

        Raises:
            InputError: no seeds, or the pipeline does not take an option.
        """
        if len(seeds) == 0:
            raise InputError("seeds is empty; give one for each image")
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        with self.quiet():
            out = self.run(
                prompt=prompt,
                num_images_per_prompt=len(seeds),
                generator=generators,
                output_type=output_type,
                **options,
            )
        return out

    def run(self, *, gradients: bool = False, **arguments: Any) -> Any:
        """Call the pipeline with the options of this object and return its images.

        Args:
            gradients: leave out the pipeline's own torch.no_grad.
            arguments: of the pipeline.

        Raises:
            InputError: the pipeline does not take an argument.
        """
        arguments = self.options | arguments
        unknown = sorted(set(arguments) - self.accepts)
        if unknown:
            raise InputError(f"{self.name} takes no {', '.join(unknown)}; leave it out")
        try:
            call = type(self.pipe).__call__
            call = inspect.unwrap(call) if gradients else call
            out = call(self.pipe, **arguments)
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.name} refuses its arguments: {brief(error)}") from error
        return out.images if hasattr(out, "images") else out[0]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hide the pipeline's progress bar inside the block."""
        before = dict(getattr(self.pipe, "_progress_bar_config", {}) or {})
        had = hasattr(self.pipe, "_progress_bar_config")
        self.pipe.set_progress_bar_config(**before | {"disable": True})
        try:
            yield
        finally:
            if had:
                self.pipe.set_progress_bar_config(**before)
            else:
                del self.pipe._progress_bar_config

    # How the network is called

    def call_network(self, z: Tensor, times: Tensor, cond: Condition) -> Tensor:
        """Call the network with another latent and time, in its own coordinates."""
        if not isinstance(cond, Condition):
            raise InputError(
                "this model takes a prompt: use denoiser(prompt), or pass a Condition as cond"
            )
        args, kwargs = cond.expanded(len(z))
        dtype, sample, time = self._dtype, *self.places
        values: dict[int | str, Tensor] = {
            sample: z.to(self.device, dtype),
            time: times.to(self.device, self._time_dtype),
        }
        for place, value in values.items():
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        with _frozen(self.network), own_calls():
            out = self.network(*args, **kwargs)
        return self.layout.prediction(out).to(z)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes (its execution device, if parts are off-loaded)."""
        return torch.device(getattr(self.pipe, "_execution_device", None) or self.pipe.device)

    def predictor(self, prediction: Tensor) -> Denoiser:
        """Return the Denoiser whose network answers `prediction`, whatever it is asked."""
        return self._kind(lambda z, t, c: prediction, self.schedule)

    def sigma_at(self, time: float) -> float:
        """Return the sigma of a time of the scheduler."""
        return float(self._clock.sigma(torch.tensor([time], dtype=torch.float64)))

    def to_ve(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Bring a latent in the network's coordinates to VE coordinates x."""
        sigma = sigma.to(z).reshape(-1, *[1] * (z.ndim - 1))
        if self._kind.__name__ == "FlowDenoiser":
            return z * (1 + sigma)
        return z * (1 + sigma**2).sqrt()

    # Looking at the pipeline

    def _check(self) -> None:
        if self.network.training:
            raise InputError(f"{self.name}'s network is in training mode; call .eval() on it first")
        if "prompt" not in self.accepts:
            raise InputError(f"{self.name} takes no prompt: it is no text-to-image pipeline")

    def _look(self) -> tuple[Layout, tuple[int, ...]]:
        """Run the pipeline three times and read how it calls its network: three passes in all."""
        guided, plain = self._switches()
        try:
            whole = self._record(PROBE, 1, 3, plain)
        except InputError as error:
            if "image" not in self.accepts:
                raise
            raise InputError(
                f"{self.name} needs an image: it is no text-to-image pipeline ({error})"
            ) from error
        if not whole.calls or not whole.steps:
            raise InputError(
                f"{self.name} did not call its {'/'.join(NETWORKS)} and scheduler.step; memfold "
                "cannot watch it"
            )
        one = whole.calls[0]
        two = self._record(PROBE, 2, 1, plain).calls[0]
        batched = batched_leaves(one, two)
        if len(two.latent) != 2 * len(one.latent) or len(one.latent) != 1:
            raise InputError(
                f"{self.name} calls its network with a batch of {len(one.latent)} for one image "
                f"and {len(two.latent)} for two, without guidance; memfold expects 1 and 2"
            )
        scale, shift = _affine(whole)
        louder = self._louder(whole)
        self.places, self._time_dtype = one.where, _float(one.time.dtype)
        self._dtype = one.latent.dtype
        conditional, calls = self._find_halves(batched, guided, part(one, batched, 0, 1, PROBE))
        output = _output(whole)
        layout = Layout(batched, conditional, calls, scale, shift, louder, output, guided, plain)
        return layout, tuple(whole.steps[0].sample.shape[1:])

    def _louder(self, record: Record) -> float:
        """Compare the scheduler's own sigmas with its table; a flow may be shifted by a factor.

        s' = k s / (1 + (k - 1) s) is sigma' = k sigma in VE coordinates, sigma = s / (1 - s).

        Raises:
            InputError: they differ by more than a factor.
        """
        flow, table = issubclass(self._kind, FlowDenoiser), self.schedule_of_scheduler
        ratios = []
        for step in record.steps:
            own = step.sigma / (1 - step.sigma) if flow and step.sigma != 1 else step.sigma
            if table.sigma_min < own < table.sigma_max and step.sigma != 1:
                ratios.append(own / float(table.sigma(torch.tensor([step.time]))))
        if all(abs(r - 1) < _ROUNDING for r in ratios):
            return 1.0
        if not flow or max(ratios) > (1 + _ROUNDING) * min(ratios):
            raise InputError(
                f"{self.name}'s scheduler counts with other sigmas than its table has at the same "
                f"times (by a factor of {min(ratios):.3g} to {max(ratios):.3g}); memfold cannot "
                "tell which noise the network was trained with: take another scheduler"
            )
        return ratios[-1]

    def _switches(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if "true_cfg_scale" in self.accepts:
            return {"true_cfg_scale": _GUIDED, "negative_prompt": " "}, {"true_cfg_scale": 1.0}
        if "guidance_scale" in self.accepts:
            return {"guidance_scale": _GUIDED}, {"guidance_scale": 1.0}
        return {}, {}

    def _find_halves(
        self, batched: tuple[bool, ...], guided: dict[str, Any], cond: Condition
    ) -> tuple[int | None, int]:
        """Find out which half, or call, of guidance belongs to the prompt."""
        if not guided:
            return None, 1
        record = self._record(PROBE, 1, 2, guided)
        first = record.calls[0]
        if len(first.latent) == 2:
            halves = [part(first, batched, i, 2, PROBE) for i in range(2)]
            calls = 1
        elif (
            len(first.latent) == 1
            and len(record.calls) > 1
            and not record.steps  # two calls before the first step
        ):
            halves = [part(call, batched, 0, 1, PROBE) for call in record.calls[:2]]
            calls = 2
        elif len(first.latent) == 1:
            return None, 1
        else:
            raise InputError(
                f"{self.name} calls its network with {len(first.latent)} parts for one image; "
                "memfold knows 1 (no guidance) and 2 (classifier-free guidance)"
            )
        return int(same(halves[1], cond) < same(halves[0], cond)), calls

    def _record(
        self,
        prompt: str,
        images: int,
        stop_after: int | None,
        options: dict[str, Any],
        *,
        gradients: bool = False,
    ) -> Record:
        arguments: dict[str, Any] = {
            "prompt": prompt,
            "num_images_per_prompt": images,
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(0),
        }
        arguments = {k: v for k, v in arguments.items() if k in self.accepts} | options
        with (
            self.quiet(),
            recorded(self.network, self.pipe.scheduler, stop_after) as record,
            _kept(self.pipe.scheduler),
            _kept(self.pipe, but=_OFFLOADING),
        ):
            try:
                self.run(gradients=gradients, **arguments)
            except Stop:
                pass
            except InputError:
                raise
            except Exception as error:  # whatever the pipeline raises
                raise InputError(f"{self.name} cannot be run: {brief(error)}") from error
            finally:
                if hasattr(self.pipe, "maybe_free_model_hooks"):
                    self.pipe.maybe_free_model_hooks()
        return record

    def _halves(self, prompt: str, options: dict[str, Any]) -> tuple[Condition, Condition | None]:
        layout = self.layout
        if layout.conditional is None:
            record = self._record(prompt, 1, 1, layout.plain | options)
            return part(record.calls[0], layout.batched, 0, 1, prompt), None
        record = self._record(prompt, 1, layout.calls, layout.guided | options)
        if layout.calls == 2:
            halves = [part(call, layout.batched, 0, 1, prompt) for call in record.calls[:2]]
        else:
            halves = [part(record.calls[0], layout.batched, i, 2, prompt) for i in range(2)]
        return halves[layout.conditional], halves[1 - layout.conditional]

    def _model(self, shape: tuple[int, ...]) -> Denoiser:
        inner: NetworkDenoiser = self._kind(self.call_network, self.schedule, shape=shape)
        inner.device, inner.dtype, inner.module = self.device, self._dtype, self.network
        vae = getattr(self.pipe, "vae", None)
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
        layers = _adapters(inner.pipe)
        if not layers:
            raise InputError(
                f"base = 'adapter off', but {inner.name} has no adapter loaded; load one, or pass "
                "the base pipeline"
            )
        if any(getattr(layer, "merged", False) for layer in layers):
            raise InputError(
                f"base = 'adapter off', but {inner.name}'s adapter is fused with the weights; call "
                ".unfuse_lora() on it first, or pass the base pipeline"
            )
        self.__dict__.update(inner.__dict__)
        self.base = None
        self._conditions = {}
        self.model = self._model(inner.shape)

    def call_network(self, z: Tensor, times: Tensor, cond: Condition) -> Tensor:
        """Call the network without its adapters."""
        with _adapters_off(self.pipe):
            return super().call_network(z, times, cond)

    def _record(self, *args: Any, **kwargs: Any) -> Record:
        """Run the pipeline without its adapters: its text encoders may have some too."""
        with _adapters_off(self.pipe):
            return super()._record(*args, **kwargs)


def find_network(pipe: Any) -> torch.nn.Module:
    """Return a pipeline's denoising network.

    Raises:
        InputError: it is no pipeline, or has no such network.
    """
    name = type(pipe).__name__
    parts = getattr(pipe, "components", None)
    if parts is None or not hasattr(pipe, "scheduler"):
        raise InputError(
            f"{name} is no diffusers pipeline: looked for .components and .scheduler; pass a "
            "pipeline object, its directory or a hub id"
        )
    for part_name in NETWORKS:
        if isinstance(parts.get(part_name), torch.nn.Module):
            return parts[part_name]
    known = ", ".join(sorted(parts)) or "none"
    raise InputError(
        f"{name} has no denoising network: looked for .{' and .'.join(NETWORKS)} among its "
        f"components ({known})"
    )


def _affine(record: Record) -> tuple[float, float]:
    """Fit the network's time as scale * (scheduler's time) + shift."""
    pairs = {}
    for step, seen in zip(record.steps, record.seen, strict=True):
        pairs[step.time] = float(record.calls[seen - 1].time.flatten()[0])
    (t0, u0), (t1, u1) = min(pairs.items()), max(pairs.items())
    if t0 == t1:
        return (u0 / t0 if t0 else 1.0), 0.0
    scale = (u1 - u0) / (t1 - t0)
    shift = u0 - scale * t0
    nearest = round(scale, 6)
    if abs(shift) < 1e-3 * max(abs(u0), abs(u1), 1e-9):
        return nearest if nearest else scale, 0.0
    return scale, shift


def _output(record: Record) -> str:
    """Find what the pipeline makes of the network's output before the scheduler's step."""
    call, step = record.calls[record.seen[0] - 1], record.steps[0]
    out, wanted = call.output, step.prediction
    if out is None:
        raise InputError("the pipeline's network returned nothing")
    for name, change in _OUTPUTS.items():
        if "half" in name and out.shape[1] % 2:
            continue
        made = change(out)
        if made.shape == wanted.shape and torch.allclose(
            made.float(), wanted.float(), rtol=1e-3, atol=1e-4
        ):
            return name
    raise InputError(
        f"the pipeline changes its network's output (shape {tuple(out.shape)}) before the "
        f"scheduler's step (shape {tuple(wanted.shape)}) in a way that memfold does not know; "
        f"known: {', '.join(_OUTPUTS)}"
    )


def _float(dtype: torch.dtype) -> torch.dtype:
    """Times between the table's rows need a floating-point type."""
    return dtype if dtype.is_floating_point else torch.float32


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    """Leave the parameters out of the graph inside the block; restore their flags after it."""
    if not torch.is_grad_enabled():
        yield
        return
    flags = [p for p in module.parameters() if p.requires_grad]
    for p in flags:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in flags:
            p.requires_grad_(True)


@contextmanager
def _kept(thing: Any, *, but: frozenset[str] = frozenset()) -> Iterator[None]:
    """Put an object's own state back after the block: timesteps of a scheduler, guidance of a run.

    A run of the user's may be under way, whose next step reads that state.
    """
    before = {k: v for k, v in vars(thing).items() if k not in but}
    try:
        yield
    finally:
        for name in set(vars(thing)) - set(before) - but:
            delattr(thing, name)
        vars(thing).update(before)


def _tables(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the embedding tables of a text encoder (T5 holds its table under two names)."""
    named: Any = encoder
    size = named.get_input_embeddings().weight.shape
    found = (m for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    return [m for m in found if m.weight.shape == size]


def _leaf_hook(name: str, leaves: list[Leaf]) -> Any:
    def hook(table: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        leaf = output.detach().clone().requires_grad_()
        leaves.append(Leaf(name, args[0] if args else kwargs["input"], leaf))
        return leaf

    return hook


def _adapters(pipe: Any) -> list[Any]:
    """Return the layers of a pipeline that hold an adapter: peft's mark on them is their switch."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [m for part in parts for m in part.modules() if hasattr(m, "_disable_adapters")]


@contextmanager
def _adapters_off(pipe: Any) -> Iterator[None]:
    """Turn the switches off inside the block; peft's own methods would change requires_grad too."""
    layers = _adapters(pipe)
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


__all__ = ["Call", "Condition", "TextToImage", "find_network"]
