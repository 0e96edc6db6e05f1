"""Calibrate a pipeline's scores on ordinary prompts: run them, watch them, fit the band."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.adapters.weights import adapter_settings, state_of
from memfold.sampling.arguments import argument_of, guidance_of
from memfold.sampling.monitor import Monitor
from memfold.sampling.view import StepView
from memfold.tensors import text_seed
from memfold.types import InputError

from .band import Band, fit_band, prompts_needed
from .conditions import arguments_of, negative_of, parts_of, scheduler_of, switches_of

Compute = Callable[[], dict[str, Any]]
SCORES = ("cfg_norm", "guided_score_norm")
ATTENTION = ("bright_ending",)
_SAMPLED = 4096  # numbers of each tensor that the digest reads


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    alpha: float = 0.01,
    images: int = 1,
    seed: int = 0,
    scores: Sequence[str] | None = None,
    keep: Callable[[int, Compute], dict[str, Any]] | None = None,
    progress: bool = False,
    **arguments: Any,
) -> Band:
    """Run ordinary prompts through the pipeline and fit the band that they stay in.

    Every prompt is drawn with seeds of its own, keyed by its words and `seed`. Scores of early
    steps depend on the noise more than on the prompt; with the same seeds for all prompts the band
    is too narrow for any other seed.

    Args:
        pipe: a diffusers text-to-image pipeline, or a TextToImage.
        prompts: ordinary prompts, of which none is memorized; repeated ones count once.
        alpha: wanted false-positive rate of a call.
        images: how many of a prompt are drawn and judged together; a call may later draw as many.
        seed: keys all randomness.
        scores: names of the monitor's scores, large where memorization is likely; CFG norm and
            guided score norm if None, or the latter alone where the pipeline has no guidance.
        keep: called with the number of a prompt and the function that runs it; returns what that
            returned, now or in an earlier run. This is how a run that was stopped goes on.
        progress: show a progress bar.
        arguments: of the pipeline's call (num_inference_steps, guidance_scale, negative_prompt,
            ...). The band holds for these and no others.

    Returns:
        The band, with all that it holds for: pipeline, digest, scheduler, arguments, latent shape.

    Raises:
        InputError: too few prompts for alpha, a score that is unknown or not to be had, or an
            argument for which no band holds.
    """
    model = pipe if isinstance(pipe, TextToImage) else TextToImage(pipe)
    names = _names(model, scores)
    if images < 1:
        raise InputError(f"images = {images}; take 1 or more")
    steps = argument_of(model, "num_inference_steps", arguments)
    if isinstance(steps, int) and steps < 1:
        raise InputError(f"num_inference_steps = {steps}; take 1 or more")
    todo, need = list(dict.fromkeys(prompts)), prompts_needed(alpha)
    if len(todo) < need:
        raise InputError(
            f"{len(todo)} different prompts are too few for alpha = {alpha:g}; give {need} or more"
        )
    conditions = conditions_of(model, arguments)
    if negative_of(conditions["arguments"]) and "cfg_norm" not in names:
        raise InputError(
            "a band for a negative prompt must watch cfg_norm, which tells where the prompt stops "
            "to pull against it; add it to the scores"
        )
    watched = []
    with tqdm(todo, desc="Calibration", unit="prompt", disable=not progress) as bar:
        for i, prompt in enumerate(bar):
            run = partial(_watch, model, prompt, _seeds(prompt, seed, images), names, arguments)
            watched.append(run() if keep is None else keep(i, run))
    sigmas = watched[0]["sigmas"]
    if any(found["sigmas"] != sigmas for found in watched):
        raise InputError("the runs went through different noise levels; fix the number of steps")
    runs = {name: np.array([found[name] for found in watched]) for name in names}
    if any(found["shape"] != watched[0]["shape"] for found in watched):
        raise InputError("the runs have latents of different shapes; fix height and width")
    conditions["latent_shape"] = watched[0]["shape"]
    return fit_band(runs, np.array(sigmas), alpha=alpha, conditions=conditions)


def conditions_of(model: TextToImage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a band holds for: the pipeline, its weights, and how it is called.

    Args:
        model: the pipeline.
        arguments: of its call.

    Returns:
        Plain data, for the band's file.
    """
    import diffusers

    import memfold

    return {
        **weights_of(model),
        **call_of(model, arguments),
        "memfold": memfold.__version__,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
    }


def weights_of(model: TextToImage) -> dict[str, Any]:
    """Say which weights a band holds for: those of the network and of all that reads the prompt."""
    parts = {k: v for k, v in parts_of(model.pipe).items() if v is not model.network}
    return {
        "digest": weights_digest(model.network),
        "other_weights": {name: weights_digest(part) for name, part in parts.items()},
    }


def call_of(model: TextToImage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say which call a band holds for: the pipeline, its switches, arguments and scheduler."""
    return {
        "pipeline": model.name,
        "switches": switches_of(model.pipe),
        "guidance_scale": guidance_of(model, arguments),
        "steps": argument_of(model, "num_inference_steps", arguments),
        "arguments": arguments_of(model, arguments),
        **scheduler_of(model.pipe),
    }


@torch.no_grad()
def weights_digest(network: torch.nn.Module) -> str:
    """Digest a network's weights: names, shapes, types, and 4,096 evenly spaced numbers of each.

    Args:
        network: any module, its weights off-loaded or not.

    Returns:
        "blake2b:" and 32 hexadecimal digits. Another fine-tune, adapter or precision gives others,
        and so does an adapter at another scale, switched off or fused.
    """
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state_of(network).items()):
        flat = tensor.reshape(-1)
        stride = max(flat.numel() // _SAMPLED, 1)
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        total.update(flat[::stride].to("cpu", torch.float64).numpy().tobytes())
    for line in adapter_settings(network):
        total.update(f"{line};".encode())
    return f"blake2b:{total.hexdigest()}"


def _names(model: TextToImage, scores: Sequence[str] | None) -> tuple[str, ...]:
    if scores is None:
        return SCORES if model.has_unconditional else SCORES[1:]
    if not scores or set(scores) - {*SCORES, *ATTENTION}:
        raise InputError(
            f"scores = {', '.join(scores) or 'none'}: choose from "
            f"{', '.join((*SCORES, *ATTENTION))}"
        )
    return tuple(dict.fromkeys(scores))


def _seeds(prompt: str, seed: int, images: int) -> list[int]:
    first = text_seed(prompt, seed)
    return list(range(first, first + images))


def _watch(
    model: TextToImage,
    prompt: str,
    seeds: Sequence[int],
    names: Sequence[str],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Run a prompt; return its sigmas, and its scores as lists, (images, steps)."""
    shapes: list[list[int]] = []

    def note(view: StepView) -> None:
        shapes.append(list(view.latent.shape[1:]))

    with Monitor(model, attention=bool(set(names) & set(ATTENTION)), on_step=note) as monitor:
        model.generate(prompt, seeds, **arguments)
    if monitor.blind:
        raise InputError(f"{model.name} cannot be watched: {monitor.blind}")
    if not shapes:
        raise InputError(f"{model.name} made no step; give num_inference_steps of 1 or more")
    missing = [name for name in names if name not in monitor.scores]
    if missing:
        raise InputError(
            f"{model.name} shows no {', '.join(missing)} in this run; give it a guidance_scale "
            "above 1, or take other scores"
        )
    found: dict[str, Any] = {name: monitor.scores[name].tolist() for name in names}
    return found | {"sigmas": [float(s) for s in monitor.sigmas], "shape": shapes[0]}
