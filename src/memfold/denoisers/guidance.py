"""Classifier-free guidance, once: Denoiser -> Denoiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Denoiser, Wrapper


class Guided(Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022): D_w = D_0 + w (D_c - D_0).

    Both halves depend on x, so the Jacobian of the whole holds both. w = 0 is the model without
    the condition, w = 1 the one with it.

    Args:
        inner: the model; called twice at each point.
        scale: the guidance scale w.
        uncond: the condition that stands for none (null class, empty prompt).
    """

    def __init__(self, inner: Denoiser, scale: float, *, uncond: Any = None) -> None:
        super().__init__(inner)
        self.scale = scale
        self.uncond = uncond

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return D_0 + w (D_c - D_0)."""
        without = self.inner.denoise(x, sigma, self.uncond)
        return without + self.scale * (self.inner.denoise(x, sigma, cond) - without)
