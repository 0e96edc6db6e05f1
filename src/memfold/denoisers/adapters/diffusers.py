"""From a diffusers pipeline (directory, hub id or object) to a Denoiser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.base import Conditioned, Denoiser, Wrapper
from memfold.denoisers.guidance import Guided
from memfold.denoisers.parameterizations import (
    EpsDenoiser,
    FlowDenoiser,
    NetworkDenoiser,
    ScoreDenoiser,
    VDenoiser,
    X0Denoiser,
)
from memfold.denoisers.schedules import Schedule, flow_schedule, ve_schedule, vp_schedule
from memfold.types import InputError

_PREDICTIONS: dict[str, type[NetworkDenoiser]] = {
    "epsilon": EpsDenoiser,
    "v_prediction": VDenoiser,
    "sample": X0Denoiser,
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SUPPORTED = "DDPM, DDIM, score-SDE VE, unconditional LDM and class-conditional DiT pipelines"


def load(
    model: str | Path | Any,
    *,
    class_label: int | None = None,
    guidance_scale: float | None = None,
    allow_pickle: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> Denoiser:
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
        to `encode` images in [0, 1] and `decode` points.

    Raises:
        InputError: there is no such model, its weights are pickles, or it is of a kind that is
            not supported.
    """
    pipe = _pipeline(model, allow_pickle, revision) if isinstance(model, str | Path) else model
    denoiser = from_pipeline(pipe, device=device, dtype=dtype)
    if class_label is None:
        if guidance_scale is not None:
            raise InputError(f"guidance_scale = {guidance_scale} needs a class_label to guide to")
        return denoiser
    classes = getattr(_inner(denoiser), "n_classes", None)
    if classes is None:
        raise InputError(f"class_label = {class_label}, but this model takes no classes; leave out")
    if not 0 <= class_label < classes:
        raise InputError(f"class_label = {class_label}; the model has classes 0 to {classes - 1}")
    if guidance_scale is not None:
        denoiser = Guided(denoiser, guidance_scale, uncond=torch.tensor([classes]))
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
        InputError: the pipeline is of a kind that is not supported.
    """
    name = type(pipe).__name__
    parts = getattr(pipe, "components", {})
    if "tokenizer" in parts or "text_encoder" in parts:
        raise InputError(f"{name} is a text-to-image pipeline; this version takes {_SUPPORTED}")
    if not ({"unet", "transformer"} & set(parts)) or "scheduler" not in parts:
        raise InputError(f"{name} has no denoising network and scheduler; supported: {_SUPPORTED}")
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(device=device, dtype=dtype).eval().requires_grad_(False)
    net = parts.get("unet") or parts["transformer"]
    shape = _shape(net)
    if type(pipe.scheduler).__name__ == "ScoreSdeVeScheduler":
        schedule, kind = _ve(pipe.scheduler), ScoreDenoiser
    else:
        schedule, kind = read_schedule(pipe.scheduler)
    denoiser = kind(_network(net, shape[0], dtype), schedule, shape=shape)
    denoiser.device, denoiser.dtype, denoiser.space = torch.device(device), dtype, "pixels"
    if "transformer" in parts:
        denoiser.n_classes = int(net.config.num_embeds_ada_norm)  # type: ignore[attr-defined]
    vae = parts.get("vae") or parts.get("vqvae")
    wrapped: Denoiser = Latent(denoiser, vae) if vae is not None else denoiser
    if kind is ScoreDenoiser:
        wrapped = UnitRange(wrapped)
    return wrapped


def read_schedule(scheduler: Any) -> tuple[Schedule, type[NetworkDenoiser]]:
    """Read the table and the parameterisation from a diffusers scheduler.

    Args:
        scheduler: any scheduler with `alphas_cumprod`, or a flow-matching one.

    Returns:
        The schedule and the class of Denoiser that fits the prediction type.

    Raises:
        InputError: the scheduler has neither table, or an unknown prediction type.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction":
        fresh = type(scheduler).from_config(config)
        s = fresh.sigmas[fresh.sigmas > 0]
        return flow_schedule(s, s * config.num_train_timesteps), FlowDenoiser
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(f"{name} has no table of alphas_cumprod; supported: {_SUPPORTED}")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise InputError(f"prediction_type = {prediction!r} is unknown; known are {known}")
    return vp_schedule(table), _PREDICTIONS[prediction]


class Latent(Wrapper):
    """A Denoiser of an autoencoder's latents; LID is that of the latent, not of the image."""

    def __init__(self, inner: Denoiser, vae: Any) -> None:
        super().__init__(inner)
        self.vae = vae
        self.space = "latent"
        self.factor = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise latents."""
        return self.inner.denoise(x, sigma, cond)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [0, 1] to scaled latents (the posterior's mean)."""
        out = self.vae.encode(images.to(self.device, self.dtype) * 2 - 1)
        z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        return (z - self.shift) * self.factor

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents to images."""
        return (self.vae.decode(x / self.factor + self.shift).sample + 1) / 2


class UnitRange(Wrapper):
    """A Denoiser that was trained on images in [0, 1] instead of [-1, 1] (score SDE, VE)."""

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise x."""
        return self.inner.denoise(x, sigma, cond)

    def encode(self, images: Tensor) -> Tensor:
        """Take images as they are."""
        return images.to(self.device, self.dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Take points as they are."""
        return x


def _network(net: Any, channels: int, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """Call the network; of twice as many output channels (learned variance) the first half counts."""
    by_class = hasattr(net.config, "num_embeds_ada_norm")

    def call(z: Tensor, t: Tensor, cond: Any) -> Tensor:
        if by_class and cond is None:
            raise InputError("this model is class-conditional: pass class_label=, or cond=, a class")
        extra = {}
        if cond is not None:
            labels = torch.as_tensor(cond, device=z.device).reshape(-1)
            extra["class_labels"] = labels.expand(len(z))
        out = net(z.to(dtype), timestep=t.to(z.device), **extra).sample
        return out[:, :channels].to(z.dtype)

    return call


def _shape(net: Any) -> tuple[int, int, int]:
    size = net.config.sample_size
    if size is None:
        raise InputError("the network's configuration has no sample_size; add it to config.json")
    height, width = (size, size) if isinstance(size, int) else size
    return (int(net.config.in_channels), int(height), int(width))


def _ve(scheduler: Any) -> Schedule:
    return ve_schedule(scheduler.config.sigma_min, scheduler.config.sigma_max)


def _inner(denoiser: Denoiser) -> Denoiser:
    while isinstance(denoiser, Wrapper):
        denoiser = denoiser.inner
    return denoiser


def _pipeline(model: str | Path, allow_pickle: bool, revision: str | None) -> Any:
    """Load a pipeline, with every failure in one line that names the model and the remedy."""
    directory = Path(model)
    if directory.is_dir():
        _check_directory(directory, allow_pickle)
    elif directory.exists():
        raise InputError(f"{model} is a file; pass the directory of a diffusers pipeline")
    elif not _is_hub_id(str(model)):
        raise InputError(f"{model}: no such directory, and no hub id of the form organization/name")
    import diffusers
    import diffusers.utils.logging as logs

    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        options = {} if revision is None else {"revision": revision}
        return diffusers.DiffusionPipeline.from_pretrained(
            str(model), use_safetensors=None if allow_pickle else True, **options
        )
    except Exception as error:  # diffusers, huggingface_hub and safetensors raise a wide variety
        raise InputError(f"{model} cannot be loaded as a diffusers pipeline: {_brief(error)}") from error
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def _check_directory(directory: Path, allow_pickle: bool) -> None:
    index = directory / "model_index.json"
    pickles = sorted(p for pattern in _PICKLES for p in directory.rglob(pattern))
    if not index.is_file():
        if pickles:
            raise InputError(
                f"{pickles[0]} is a pickle and {directory} no diffusers pipeline (model_index.json "
                "is missing); convert it with diffusers' save_pretrained"
            )
        raise InputError(f"{directory} is no diffusers pipeline: model_index.json is missing")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        name = entries["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged ({_brief(error)}); save the pipeline again") from error
    for part in (p for p in ("unet", "transformer") if p in entries):
        if not (directory / part / "config.json").is_file():
            raise InputError(f"{directory / part} has no config.json, but {name} needs it")
        safe = any((directory / part).glob("*.safetensors"))
        if not safe and pickles and not allow_pickle:
            raise InputError(
                f"{pickles[0]} is a pickle, which can run code when read; convert it to "
                "safetensors, or pass allow_pickle=True (--allow-pickle) if you trust it"
            )


def _is_hub_id(name: str) -> bool:
    head, _, tail = name.partition("/")
    return bool(head and tail) and "/" not in tail and not name.startswith((".", "~"))


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
