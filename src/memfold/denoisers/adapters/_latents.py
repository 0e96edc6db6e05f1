"""Between images and a text-to-image pipeline's latents, packed as the pipeline packs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.base import Denoiser, Wrapper, check_images
from memfold.types import InputError


@dataclass(frozen=True)
class Packing:
    """Latents as (tokens, channels): FLUX and its kin pack 2 x 2 latent pixels into one token.

    Attributes:
        channels: channels of the autoencoder's latent.
        height: its height.
        width: its width.
    """

    channels: int
    height: int
    width: int

    @staticmethod
    def of(pipe: Any, shape: tuple[int, ...], options: dict[str, Any]) -> Packing | None:
        """Read the packing off a pipeline's latent shape; None if it packs nothing."""
        name, channels = type(pipe).__name__, _channels(autoencoder(pipe))
        if len(shape) in (3, 4):
            if channels not in (None, shape[0]):
                raise InputError(
                    f"{name} has latents of shape {shape}, whose first axis is not the "
                    f"{channels} channels of its autoencoder; memfold knows (channels, height, "
                    "width), and (channels, frames, height, width) for videos"
                )
            return None
        if len(shape) != 2 or shape[1] % 4 or channels not in (None, shape[1] // 4):
            raise InputError(
                f"{name} has latents of shape {shape}; memfold knows (channels, "
                "height, width) and packed (tokens, 4 channels)"
            )
        tokens, side = shape[0], round(shape[0] ** 0.5)
        height = options.get("height")
        width = options.get("width")
        rows = side
        if height and width:
            rows = round((tokens * height / width) ** 0.5)
        if tokens % rows:
            raise InputError(f"{tokens} tokens are no rectangle: pass height= and width=")
        return Packing(shape[1] // 4, 2 * rows, 2 * (tokens // rows))

    def unpack(self, x: Tensor) -> Tensor:
        """(b, tokens, 4 channels) -> (b, channels, height, width)."""
        b, h, w = len(x), self.height // 2, self.width // 2
        x = x.reshape(b, h, w, self.channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(b, self.channels, self.height, self.width)

    def pack(self, z: Tensor) -> Tensor:
        """(b, channels, height, width) -> (b, tokens, 4 channels)."""
        b, h, w = len(z), self.height // 2, self.width // 2
        z = z.reshape(b, self.channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5)
        return z.reshape(b, h * w, 4 * self.channels)


def autoencoder(pipe: Any) -> Any:
    """Return a pipeline's autoencoder; None for a pipeline of pixels."""
    return next((v for n in ("vae", "movq") if (v := getattr(pipe, n, None)) is not None), None)


def _channels(vae: Any) -> int | None:
    """Return the channels of an autoencoder's latent, where its configuration says them."""
    config = getattr(vae, "config", None)
    for name in ("latent_channels", "z_dim"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


class LatentImages(Wrapper):
    """A Denoiser of a pipeline's latents that encodes and decodes images with the pipeline's VAE.

    LID is that of the latent, not of the image. An autoencoder's own latent is z = x s + m, with
    the scaling and shift factor of its configuration, its mean and standard deviation of each
    channel, or those of its batch norm, which stand for packed latents. Videos are images with an
    axis of time, (b, c, frames, h, w); the autoencoders of videos decode an image as one frame.
    """

    def __init__(self, inner: Denoiser, vae: Any, packing: Packing | None) -> None:
        super().__init__(inner)
        self.vae, self.packing = vae, packing
        self.space, self.range = "latent", None
        self.quantised = "quantize" in dict(vae.named_children())  # a VQ model's latents stay
        self.frames = any(p.ndim == 5 for p in vae.parameters())
        if len(self.shape or ()) == 4 and not self.frames:
            raise InputError(
                f"{type(vae).__name__} decodes single images, but the pipeline's latents of shape "
                f"{self.shape} hold frames; memfold knows videos with an autoencoder of videos"
            )

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise latents."""
        return self.inner.denoise(x, sigma, cond)

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and m of z = x s + m, as they broadcast against x (as the pipeline has it)."""
        config, norm = self.vae.config, getattr(self.vae, "bn", None)
        if norm is not None:
            std = (norm.running_var + config.batch_norm_eps).sqrt()
            return _like(x, std, packed=True), _like(x, norm.running_mean, packed=True)
        factor = float(getattr(config, "scaling_factor", None) or 1.0)
        shift = float(getattr(config, "shift_factor", None) or 0.0)
        if self.quantised:
            factor, shift = 1.0, 0.0
        mean, std = (getattr(config, f"latents_{n}", None) for n in ("mean", "std"))
        if mean is None or std is None:
            return x.new_tensor(1 / factor), x.new_tensor(shift)
        return _like(x, torch.tensor(std) / factor), _like(x, torch.tensor(mean))

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [0, 1] to scaled latents (the posterior's mean)."""
        check_images(images)
        given = images.to(self.device, self._vae_dtype) * 2 - 1
        one_frame = self.frames and len(self.shape or ()) != 4
        out = self.vae.encode(given.unsqueeze(2) if one_frame else given)
        if hasattr(out, "latent_dist"):
            z = out.latent_dist.mean
        else:
            z = out.latent if hasattr(out, "latent") else out.latents
        return self.scaled(z[:, :, 0] if one_frame else z)

    def scaled(self, z: Tensor) -> Tensor:
        """Bring the autoencoder's own latents to points x."""
        z = z.to(self.point_dtype)
        packed = getattr(self.vae, "bn", None) is not None
        if packed and self.packing is not None:
            z = self.packing.pack(z)
        scale, mean = self._scale(z)
        z = (z - mean) / scale
        return z if self.packing is None or packed else self.packing.pack(z)

    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents to images; differentiable."""
        if getattr(self.vae, "bn", None) is not None:
            scale, mean = self._scale(x)
            z = x * scale + mean
            z = z if self.packing is None else self.packing.unpack(z)
        else:
            z = x if self.packing is None else self.packing.unpack(x)
            scale, mean = self._scale(z)
            z = z * scale + mean
        one_frame = self.frames and len(self.shape or ()) != 4
        z = (z.unsqueeze(2) if one_frame else z).to(self._vae_dtype)
        more = {"force_not_quantize": True} if self.quantised else {}
        image = self.vae.decode(z, return_dict=False, **more)[0]
        return ((image[:, :, 0] if one_frame else image).to(x.dtype) + 1) / 2


def _like(x: Tensor, values: Tensor, *, packed: bool = False) -> Tensor:
    """Give one value a channel the shape that broadcasts against latents."""
    values = values.detach().to(x)
    return values if packed and x.ndim == 3 else values.reshape(1, -1, *[1] * (x.ndim - 2))
