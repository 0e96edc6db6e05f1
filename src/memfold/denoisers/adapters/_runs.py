"""Run a user's diffusers pipeline as it is, and record how it calls its network."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from memfold.types import InputError

from ._calls import Record, Stop, recorded
from ._pipeline import brief
from ._state import borrowed

NETWORKS = ("unet", "transformer")
EMBEDDED = re.compile("prompt_embeds|prompt_attention_mask")
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")


class Runs:
    """A diffusers pipeline object that can be called, watched or stopped; nothing of it changes.

    Args:
        pipe: the pipeline.
        options: arguments for every call of it.

    Attributes:
        pipe: the user's own object.
        options: see there.
        name: the class of the pipeline.
        network: its denoising network.
        accepts: the arguments that the pipeline takes.
        count: the one of them that says how many images to draw.

    Raises:
        InputError: it is no pipeline, or has no denoising network.
    """

    def __init__(self, pipe: Any, options: dict[str, Any]) -> None:
        self.pipe, self.options, self.name = pipe, options, type(pipe).__name__
        self.network = find_network(pipe)
        self.accepts = set(inspect.signature(type(pipe).__call__).parameters)
        self.count = next((n for n in _COUNTS if n in self.accepts), _COUNTS[0])

    def argument(self, name: str, given: Mapping[str, Any]) -> Any:
        """Return the value that a call takes for an argument: given, held here, or the default.

        None where the pipeline takes no such argument, or has no default for it.
        """
        for values in (given, self.options):
            if name in values:
                return values[name]
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get(name)
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return None
        return parameter.default

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes (its execution device, if parts are off-loaded)."""
        return torch.device(getattr(self.pipe, "_execution_device", None) or self.pipe.device)

    @torch.no_grad()
    def generate(
        self, prompt: str, seeds: Sequence[int], *, output_type: str = "latent", **options: Any
    ) -> Any:
        """Call the user's own pipeline, with one generator for each seed.

        It runs on a borrowed copy, so that the user's object and its scheduler stay as they are,
        whoever uses them meanwhile.

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
        with borrowed(self.pipe) as pipe:
            return self.run(
                pipe,
                prompt=prompt,
                generator=generators,
                output_type=output_type,
                **{self.count: len(seeds)} | options,
            )

    def run(self, pipe: Any, *, gradients: bool = False, **arguments: Any) -> Any:
        """Call the pipeline with the options of this object; return its images.

        Args:
            pipe: a borrowed copy, or the pipeline itself.
            gradients: leave out the pipeline's own torch.no_grad.
            arguments: of the pipeline.

        Raises:
            InputError: the pipeline does not take an argument.
        """
        arguments = self._worded(arguments)
        unknown = sorted(set(arguments) - self.accepts)
        if unknown:
            raise InputError(f"{self.name} takes no {', '.join(unknown)}; leave it out")
        try:
            call = type(self.pipe).__call__
            call = inspect.unwrap(call) if gradients else call
            out = call(pipe, **arguments)
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.name} refuses its arguments: {brief(error)}") from error
        for name in ("images", "frames"):
            if hasattr(out, name):
                return getattr(out, name)
        return out[0]

    @property
    def wordless(self) -> bool:
        """Whether the pipeline came without any text encoder, so that it takes embeddings alone."""
        parts = [v for k, v in self.pipe.components.items() if k.startswith("text_encoder")]
        return bool(parts) and all(part is None for part in parts)

    def _worded(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Join the arguments of a call and of this object: words, or embeddings in their place.

        Embeddings of the call stand for its prompt; those of this object do so where the pipeline
        has no text encoder.
        """
        held = self.options
        if "prompt_embeds" not in arguments and not self.wordless:
            held = {k: v for k, v in held.items() if not EMBEDDED.search(k)}
            return held | arguments
        given = held | arguments
        words = {"prompt"} | ({"negative_prompt"} if self.wordless else set())
        if "negative_prompt_embeds" in given:
            words.add("negative_prompt")
        return {k: v for k, v in given.items() if k not in words}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hide the progress bar of the user's own object inside the block."""
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

    def record(
        self,
        prompt: str,
        images: int,
        stop_after: int | None,
        options: dict[str, Any],
        *,
        gradients: bool = False,
    ) -> Record:
        """Run the pipeline in few steps and record the calls of its network.

        Args:
            prompt: the words.
            images: images a prompt.
            stop_after: calls after which the run is stopped; None for a whole run.
            options: arguments of the pipeline.
            gradients: leave out the pipeline's own torch.no_grad.

        Returns:
            The calls and steps.

        Raises:
            InputError: the pipeline cannot be run.
        """
        arguments: dict[str, Any] = {
            "prompt": prompt,
            self.count: images,
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(0),
        }
        arguments = {k: v for k, v in arguments.items() if k in self.accepts} | options
        with (
            borrowed(self.pipe) as pipe,
            recorded(self.network, pipe, stop_after) as record,
        ):
            try:
                self.run(pipe, gradients=gradients, **arguments)
            except Stop:
                pass
            except InputError:
                raise
            except Exception as error:  # whatever the pipeline raises
                raise InputError(f"{self.name} cannot be run: {brief(error)}") from error
            finally:
                if hasattr(pipe, "maybe_free_model_hooks"):
                    pipe.maybe_free_model_hooks()
        return record


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
