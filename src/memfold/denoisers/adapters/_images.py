"""What a model's points are, if not pixels in [-1, 1]: latents of an autoencoder, or [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.base import Denoiser, Wrapper, check_images


class Latent(Wrapper):
    """A Denoiser of an autoencoder's latents; LID is that of the latent, not of the image."""

    def __init__(self, inner: Denoiser, vae: Any) -> None:
        super().__init__(inner)
        self.vae = vae
        self.space, self.range = "latent", None
        self.factor = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise latents."""
        return self.inner.denoise(x, sigma, cond)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [0, 1] to scaled latents (the posterior's mean)."""
        check_images(images)
        out = self.vae.encode(images.to(self.device, self.dtype) * 2 - 1)
        z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        return (z.to(self.point_dtype) - self.shift) * self.factor

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents to images."""
        z = (x / self.factor + self.shift).to(self.dtype)
        return (self.vae.decode(z).sample.to(x.dtype) + 1) / 2


class UnitRange(Wrapper):
    """A Denoiser that was trained on images in [0, 1] instead of [-1, 1] (score SDE, VE)."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.range = (0.0, 1.0)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise x."""
        return self.inner.denoise(x, sigma, cond)

    def encode(self, images: Tensor) -> Tensor:
        """Take images as they are."""
        check_images(images)
        return images.to(self.device, self.point_dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Take points as they are."""
        return x
