"""From a diffusers pipeline (directory, hub id or object) to a Denoiser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memfold.denoisers.base import Conditioned, Denoiser
from memfold.denoisers.guidance import Guided
from memfold.denoisers.parameterizations import Network, ScoreDenoiser
from memfold.tensors import check_device
from memfold.types import InputError

from ._images import Latent, UnitRange
from ._pipeline import SUPPORTED, TEXT, brief, quiet_libraries, read_pipeline
from .schedulers import read_schedule

_LARGEST = 2**28  # numbers in one point: 16384 x 16384, far beyond any model


def load(
    model: str | Path | Any,
    *,
    class_label: int | None = None,
    guidance_scale: float | None = None,
    allow_pickle: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> Any:
    """Load a diffusion model that diffusers can load, as a Denoiser.

    Args:
        model: a diffusers pipeline directory, a hub id (`organization/name`), or a pipeline object.
        class_label: the class that a class-conditional model is fixed to.
        guidance_scale: classifier-free guidance with that class; the class alone where None.
        allow_pickle: also read weights from pickles, which can run code: only for files you trust.
        device: where to compute.
        dtype: what to compute in; float32 unless the model is large.
        revision: branch, tag or commit of a hub id.

    Returns:
        A Denoiser that knows its `shape`, `sigma_min`, `sigma_max`, `device` and `dtype`, and how
        to `encode` images in [0, 1] and `decode` points; of a text-to-image pipeline, a
        `TextToImage`, whose `denoiser(prompt)` is one.

    Raises:
        InputError: there is no such model, its weights are pickles, or it is of a kind that is
            not supported.
    """
    check_device(device)
    pipe = model
    if isinstance(model, str | Path):
        pipe = read_pipeline(model, allow_pickle=allow_pickle, revision=revision)
    if is_text_to_image(pipe):
        return _text_to_image(pipe, class_label, guidance_scale, device, dtype)
    denoiser = from_pipeline(pipe, device=device, dtype=dtype)
    if class_label is None:
        if guidance_scale is not None:
            raise InputError(f"guidance_scale = {guidance_scale} needs a class_label to guide to")
        return denoiser
    classes, null = denoiser.n_classes, denoiser.null_class
    if classes is None:
        raise InputError(f"class_label = {class_label}, but this model takes no classes: leave it")
    if not 0 <= class_label < classes:
        raise InputError(f"class_label = {class_label}; the model has classes 0 to {classes - 1}")
    if guidance_scale is not None:
        if null is None:
            raise InputError(
                f"guidance_scale = {guidance_scale}, but this model has no label for no class; "
                "leave it"
            )
        denoiser = Guided(denoiser, guidance_scale, uncond=torch.tensor([null]))
    return Conditioned(denoiser, torch.tensor([class_label]))


def from_pipeline(
    pipe: Any, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Denoiser:
    """Make a Denoiser of a pipeline object; the object itself is moved to device and dtype.

    Args:
        pipe: a diffusers pipeline.
        device: where to compute.
        dtype: what to compute in.

    Returns:
        The Denoiser.

    Raises:
        InputError: the pipeline is of a kind that is not supported, or its network does not do
            what its configuration says.
    """
    name = type(pipe).__name__
    parts = getattr(pipe, "components", {})
    if TEXT & set(parts):
        raise InputError(f"{name} is a text-to-image pipeline: pass it to memfold.TextToImage")
    if not ({"unet", "transformer"} & set(parts)) or "scheduler" not in parts:
        raise InputError(f"{name} has no denoising network and scheduler; {SUPPORTED}")
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _place(part, device, dtype).eval().requires_grad_(False)
    net = parts.get("unet") or parts["transformer"]
    shape = _shape(net)
    schedule, kind = read_schedule(pipe.scheduler)
    n_classes, null_class = _classes(net)
    denoiser = kind(_network(net, shape[0], dtype, n_classes), schedule, shape=shape)
    denoiser.device, denoiser.dtype, denoiser.space = torch.device(device), dtype, "pixels"
    denoiser.n_classes, denoiser.null_class = n_classes, null_class
    denoiser.module = net
    _check_forward(denoiser, None if n_classes is None else torch.tensor([0]))
    vae = parts.get("vae") or parts.get("vqvae")
    wrapped: Denoiser = Latent(denoiser, vae) if vae is not None else denoiser
    if kind is ScoreDenoiser:
        wrapped = UnitRange(wrapped)
    return wrapped


def is_text_to_image(pipe: Any) -> bool:
    """Tell whether a pipeline object has a text encoder or a tokenizer."""
    return bool(TEXT & set(getattr(pipe, "components", {})))


def _text_to_image(
    pipe: Any,
    class_label: int | None,
    guidance_scale: float | None,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    """Place a text-to-image pipeline and wrap it."""
    from .text_to_image import TextToImage

    if class_label is not None or guidance_scale is not None:
        raise InputError(
            f"{type(pipe).__name__} takes a prompt: leave class_label and guidance_scale, and call "
            ".denoiser(prompt, guidance_scale=...)"
        )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            _place(part, device, dtype).eval()
    return TextToImage(pipe)


def _network(net: Any, channels: int, dtype: torch.dtype, n_classes: int | None) -> Network:
    """Call the network; of doubled output channels (learned variance) the first half counts."""

    def call(z: Tensor, t: Tensor, cond: Any) -> Tensor:
        if (n_classes is None) != (cond is None):
            wants = "no classes: leave cond" if n_classes is None else "a class: pass class_label="
            raise InputError(f"this model takes {wants}")
        extra = {}
        if cond is not None:
            labels = torch.as_tensor(cond, device=z.device).reshape(-1)
            extra["class_labels"] = labels.expand(len(z))
        out = net(z.to(dtype), timestep=t.to(z.device), **extra).sample
        if out.shape[1] not in (channels, 2 * channels) or out.shape[2:] != z.shape[2:]:
            raise InputError(
                f"the network returned shape {tuple(out.shape)} for {tuple(z.shape)}: its config "
                "does not describe a denoising network"
            )
        return out[:, :channels].to(z.dtype)

    return call


def _place(part: torch.nn.Module, device: str | torch.device, dtype: torch.dtype) -> Any:
    """Move a module; cast it only where need be, since diffusers warns of every cast."""
    part.to(device=device)
    found = next(part.parameters(), None)
    if found is None or found.dtype == dtype:
        return part
    with quiet_libraries():
        return part.to(dtype=dtype)


def _check_forward(denoiser: Denoiser, cond: Any) -> None:
    """Ask the model once, so that a network that is not what it says fails here."""
    sigma = (denoiser.sigma_min * denoiser.sigma_max) ** 0.5
    noise = torch.randn(1, *(denoiser.shape or ()), generator=torch.Generator().manual_seed(0))
    x = noise.to(denoiser.device, denoiser.point_dtype) * sigma
    try:
        with torch.no_grad():
            fine = bool(denoiser(x, sigma, cond).isfinite().all())
    except InputError:
        raise
    except Exception as error:  # whatever the network raises
        raise InputError(f"the network cannot be called: {brief(error)}; {SUPPORTED}") from error
    if not fine:
        raise InputError(
            f"the network returns NaN or infinity in {denoiser.dtype}; take another checkpoint, or "
            "dtype=torch.float32"
        )


def _classes(net: Any) -> tuple[int | None, int | None]:
    """Read how many classes a network takes, and which label stands for none of them."""
    n = net.config.get("num_embeds_ada_norm")
    return (n, n) if n is not None else (net.config.get("num_class_embeds"), None)


def _shape(net: Any) -> tuple[int, int, int]:
    size = net.config.sample_size
    if size is None:
        raise InputError("the network's configuration has no sample_size; add it to config.json")
    sides = (size, size) if isinstance(size, int) else tuple(np.atleast_1d(size))
    shape = (net.config.in_channels, *sides)
    whole = all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    if len(shape) != 3 or not whole or math.prod(map(int, shape)) > _LARGEST:
        raise InputError(
            f"the network's config.json says sample_size = {size}, in_channels = {shape[0]}: no "
            "size of an image; mend it"
        )
    channels, height, width = map(int, shape)
    return channels, height, width
