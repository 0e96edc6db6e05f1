"""Exact models in general position, shared by the tests: off the origin, rotated axes."""

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
