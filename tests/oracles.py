"""Exact models in general position, shared by the tests: off the origin, rotated axes."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import torch

from memfold.denoisers.exact import GaussianDenoiser, MixtureDenoiser


def rotation(d: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return k orthonormal columns in random directions, shape (d, k)."""
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q.to(dtype)


def gaussian(d: int = 12, k: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Return a Gaussian on a k-dimensional subspace: (denoiser, mean, variances, basis)."""
    g = torch.Generator().manual_seed(seed + 100)
    mean = (3 * torch.randn(d, generator=g, dtype=torch.float64)).to(dtype)
    variances = (0.5 + torch.rand(k, generator=g, dtype=torch.float64)).to(dtype)
    basis = rotation(d, k, seed, dtype)
    return GaussianDenoiser(mean, variances, basis), mean, variances, basis


def mixture(dims: tuple[int, ...], d: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Return a mixture of Gaussians of unit variance on far subspaces, and a point sampler."""
    g = torch.Generator().manual_seed(seed)
    means = [(torch.randn(d, generator=g) * 5).to(dtype) for _ in dims]
    bases = [rotation(d, k, seed + i, dtype) for i, k in enumerate(dims)]
    model = MixtureDenoiser(means, [torch.ones(k, dtype=dtype) for k in dims], bases)

    def points(i: int, n: int) -> torch.Tensor:
        return means[i] + torch.randn(n, dims[i], generator=g).to(dtype) @ bases[i].mT

    return model, points


def gaussian_points(mean, variances, basis, n: int, seed: int = 1) -> torch.Tensor:
    """Draw n points of a Gaussian, shape (n, d)."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, len(variances), generator=g, dtype=torch.float64).to(mean)
    return mean + (z * variances.sqrt()) @ basis.mT


def tiny_unet(seed: int = 0, **config):
    """Return a small UNet2DModel with attention and random weights, 2 x 8 x 8."""
    from diffusers import UNet2DModel

    defaults = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**(defaults | config)).eval().requires_grad_(False)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator in a known state."""
    return torch.Generator().manual_seed(seed)


def z_score(values: torch.Tensor) -> float:
    """Return the mean over its standard error: standard normal where the truth is 0."""
    values = values.double().flatten()
    return float(values.mean() / (values.std() / len(values) ** 0.5))


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checks of types and shapes off, as they are outside of pytest."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
