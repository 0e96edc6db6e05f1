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
        if len(shape) == 3:
            return None
        if len(shape) != 2 or shape[1] % 4:
            raise InputError(
                f"{type(pipe).__name__} has latents of shape {shape}; memfold knows (channels, "
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


class LatentImages(Wrapper):
    """A Denoiser of a pipeline's latents that encodes and decodes images with the pipeline's VAE.

    LID is that of the latent, not of the image.
    """

    def __init__(self, inner: Denoiser, vae: Any, packing: Packing | None) -> None:
        super().__init__(inner)
        self.vae, self.packing = vae, packing
        self.space, self.range = "latent", None
        config = vae.config
        self.factor = float(getattr(config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise latents."""
        return self.inner.denoise(x, sigma, cond)

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [0, 1] to scaled latents (the posterior's mean)."""
        check_images(images)
        out = self.vae.encode(images.to(self.device, self._vae_dtype) * 2 - 1)
        if hasattr(out, "latent_dist"):
            z = out.latent_dist.mean
        else:
            z = out.latent if hasattr(out, "latent") else out.latents
        z = (z.to(self.point_dtype) - self.shift) * self.factor
        return z if self.packing is None else self.packing.pack(z)

    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents to images; differentiable."""
        z = x if self.packing is None else self.packing.unpack(x)
        z = (z / self.factor + self.shift).to(self._vae_dtype)
        return (self.vae.decode(z, return_dict=False)[0].to(x.dtype) + 1) / 2
