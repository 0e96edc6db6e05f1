"""Exact denoisers in closed form: oracles for tests, baselines, and models for the docs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError

from .base import Denoiser


class GaussianDenoiser(Denoiser):
    """The exact denoiser of one Gaussian: D = mean + U diag(l / (l + sigma^2)) U^T (x - mean).

    Its FLIPD at x is sum l/(l+s^2) + sum (s z/(l+s^2))^2 with z = U^T (x - mean).

    Args:
        mean: shape (d,).
        variances: the eigenvalues l of the covariance, >= 0, shape (k,) with k <= d.
        basis: their eigenvectors as columns, shape (d, k); None for the first k axes. Directions
            outside have the variance 0.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        variances: Float[Tensor, " k"],
        basis: Float[Tensor, "d k"] | None = None,
    ) -> None:
        self.mixture = MixtureDenoiser(
            [mean],
            [variances],
            [torch.eye(len(mean), len(variances)).to(mean)] if basis is None else [basis],
        )
        self.shape, self.dtype, self.device = (len(mean),), mean.dtype, mean.device

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the posterior mean."""
        return self.mixture.denoise(x, sigma, cond)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians on affine subspaces.

    D = sum_k w_k(x) D_k(x), w_k the posterior weight of component k under noise sigma.

    Args:
        means: one (d,) tensor a component.
        variances: one (k_i,) tensor a component: variances within its subspace.
        bases: one (d, k_i) tensor with orthonormal columns a component.
        weights: prior weights; uniform where None.
    """

    def __init__(
        self,
        means: list[Tensor],
        variances: list[Tensor],
        bases: list[Tensor],
        weights: Tensor | None = None,
    ) -> None:
        if not len(means) == len(variances) == len(bases) > 0:
            raise InputError(
                f"{len(means)} means, {len(variances)} variances and {len(bases)} bases: "
                "pass one of each for every component"
            )
        self.components = list(zip(means, variances, bases, strict=True))
        w = torch.ones(len(means)).to(means[0]) if weights is None else weights
        self.log_weights = (w / w.sum()).log()
        self.shape, self.dtype, self.device = (len(means[0]),), means[0].dtype, means[0].device

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the posterior mean."""
        logs, outs = [], []
        for log_w, (mean, l, basis) in zip(self.log_weights, self.components, strict=True):
            y = x - mean
            z = y @ basis
            total = l + sigma**2
            outs.append(mean + (z * (l / total)) @ basis.mT)
            off = ((y - z @ basis.mT) ** 2).sum(1)  # |y|^2 - |z|^2 would cancel near the subspace
            d, k, s = x.shape[1], len(l), sigma[:, 0]
            quad = (z**2 / total).sum(1) + off / s**2
            logs.append(log_w - (quad + total.log().sum(1) + (d - k) * 2 * s.log()) / 2)
        weights = torch.stack(logs).softmax(0)
        return (weights[..., None] * torch.stack(outs)).sum(0)


class EmpiricalDenoiser(Denoiser):
    """The exact denoiser of a finite set of points: the perfect memorizer.

    D(x, sigma) = sum_i w_i y_i, w = softmax(-|x - y_i|^2 / (2 sigma^2)). Its LID at a point of the
    set is 0 as soon as sigma is small against the distance to the next one.

    Args:
        points: the set, shape (n, *d).
        weights: how often each stands in the data; once where None.
    """

    def __init__(self, points: Float[Tensor, "n *d"], weights: Tensor | None = None) -> None:
        self.points = points
        n = len(points)
        w = torch.ones(n).to(points) if weights is None else weights.to(points)
        self.log_weights = (w / w.sum()).log()
        self.shape = tuple(points.shape[1:])
        self.dtype, self.device = points.dtype, points.device

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the posterior mean."""
        flat, points = x.flatten(1), self.points.flatten(1)
        square = torch.stack([((row - points) ** 2).sum(1) for row in flat])
        weights = (self.log_weights - square / (2 * sigma.reshape(-1, 1) ** 2)).softmax(1)
        return (weights @ points).reshape(x.shape)
