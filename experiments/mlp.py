"""A small denoising network for points, and its training: what the small experiments share."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from memfold.denoisers.adapters.edm import SigmaDenoiser
from memfold.denoisers.base import Denoiser

SIGMA_MIN, SIGMA_MAX = 0.05, 5.0
FREQUENCIES = 8


class MLP(nn.Module):
    """D(x, sigma) by residual layers under the preconditioning of Karras et al. (2022, Table 1).

    Args:
        dim: D_amb, the dimension of a point.
        width: of the hidden layers.
        depth: residual layers.
        waves: sines of each coordinate at 1, 2, ... waves, for functions that bend fast.
    """

    sigma_min, sigma_max = SIGMA_MIN, SIGMA_MAX

    def __init__(self, dim: int, *, width: int = 128, depth: int = 3, waves: int = 0) -> None:
        super().__init__()
        self.waves = waves
        self.first = nn.Linear(dim * (1 + 2 * waves) + 2 * FREQUENCIES, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise points x of shape (b, dim) at sigma of shape (b,)."""
        s, std, y = sigma[:, None], self.spread, x - self.center
        total = s**2 + std**2
        phase = s.log() * torch.arange(1, FREQUENCIES + 1).to(x) / 2
        inputs = [y / total.sqrt(), phase.sin(), phase.cos()]
        for k in range(1, self.waves + 1):
            inputs += [(k * inputs[0]).sin(), (k * inputs[0]).cos()]
        h = self.first(torch.cat(inputs, 1))
        for layer in self.inner:
            h = h + layer(nn.functional.silu(h))
        out = self.last(nn.functional.silu(h))
        return self.center + y * std**2 / total + out * s * std / total.sqrt()

    def standardize(self, x: Tensor) -> None:
        """Take the mean and the standard deviation of the data."""
        self.center.copy_(x.mean(0))
        self.spread.copy_((x - x.mean(0)).square().mean().sqrt())


def steps(
    module: MLP,
    x: Tensor,
    *,
    n: int,
    seed: int,
    batch: int = 256,
    rate: float = 2e-3,
    sigma_low: float = SIGMA_MIN,
    sigma_high: float = SIGMA_MAX,
    average: float = 0.998,
    title: str = "training",
) -> Iterator[tuple[int, MLP]]:
    """Train by the weighted denoising loss; yield the moving average of the weights at each step.

    Every step has a fresh batch of training rows, noises and log-uniform sigmas.

    Args:
        module: trained in place.
        x: training rows, shape (n, dim).
        n: number of steps.
        seed: keys rows, noises and sigmas.
        batch: rows a step.
        rate: learning rate.
        sigma_low: smallest sigma of the training.
        sigma_high: largest sigma.
        average: decay of the moving average of the weights.
        title: of the progress bar.
    """
    source = torch.Generator().manual_seed(seed)
    module.standardize(x)
    kept = copy.deepcopy(module).requires_grad_(False)
    own, new = list(kept.parameters()), list(module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    low, high, std = math.log(sigma_low), math.log(sigma_high), float(module.spread)
    for step in tqdm(range(1, n + 1), desc=title, unit="step", leave=False, mininterval=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 50)
        row = torch.randint(len(x), (batch,), generator=source)
        sigma = (low + (high - low) * torch.rand(batch, generator=source)).exp()
        noise = torch.randn(batch, x.shape[1], generator=source)
        weight = 1 / sigma**2 + 1 / std**2
        error = (module(x[row] + sigma[:, None] * noise, sigma) - x[row]).square().mean(1)
        optimizer.zero_grad(set_to_none=True)
        (weight * error).mean().backward()
        optimizer.step()
        decay = min(average, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(own, new, 1 - decay)
        yield step, kept


def train(module: MLP, **settings: object) -> None:
    """Run `steps` to the end; the module takes the averaged weights."""
    kept = module
    for _, averaged in steps(module, **settings):  # type: ignore[arg-type]
        kept = averaged
    module.load_state_dict(kept.state_dict())


def seeded(dim: int, seed: int, **options: int) -> MLP:
    """Build a network whose first weights are keyed by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(dim, **options)


def as_points(module: MLP) -> Denoiser:
    """Wrap the network as a Denoiser of points."""
    return SigmaDenoiser(module, shape=tuple(module.center.shape))
