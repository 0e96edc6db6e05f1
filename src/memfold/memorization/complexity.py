"""How complex an image is, measured on the image alone: the confounder of every LID."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.fft import dctn
from torch import Tensor

from memfold.types import InputError


def spectral_count(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, " b"]:
    """Soft count of cosine coefficients above the noise, in degrees of freedom.

    sum_k a_k^2 / (a_k^2 + sigma^2) over the orthonormal discrete cosine coefficients a_k of
    channels, rows and columns: the LID at scale sigma of a Gaussian with variances a_k^2.
    """
    power = dctn(_array(x, sigma), axes=(1, 2, 3), norm="ortho") ** 2
    return torch.from_numpy((power / (power + sigma**2)).sum((1, 2, 3))).to(x)


def compressed_size(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, " b"]:
    """Bytes of the image in steps of sigma, row differences deflated: PNG without its headers.

    PNG's size is the complexity that the literature corrects for (Kamkari et al. 2024); steps of
    sigma in place of 1/255 make it one of the same scale as the LID, and serve latents too.
    """
    steps = np.rint(_array(x, sigma) / sigma).clip(-128, 127).astype(np.int16)
    rows = np.diff(steps, axis=-1, prepend=0).astype(np.int8)
    return torch.tensor([len(zlib.compress(r.tobytes(), 9)) for r in rows]).to(x)


def total_variation(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, " b"]:
    """Sum of absolute differences of neighbouring pixels, in units of sigma."""
    a = _array(x, sigma) / sigma
    down, right = abs(np.diff(a, axis=2)), abs(np.diff(a, axis=3))
    return torch.from_numpy(down.sum((1, 2, 3)) + right.sum((1, 2, 3))).to(x)


def _array(x: Tensor, sigma: float) -> Float[ndarray, "b c h w"]:
    if x.ndim != 4:
        raise InputError(f"complexity is of images (b, c, h, w), got shape {tuple(x.shape)}")
    if not sigma > 0:
        raise InputError(f"sigma must be above 0, got {sigma}: pass the estimate's scale")
    return x.detach().to("cpu", torch.float64).numpy()
