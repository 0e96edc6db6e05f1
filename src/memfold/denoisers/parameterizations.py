"""From what a network predicts to D(x, sigma): one line of algebra a class.

Everywhere a = (1 + sigma^2)^(-1/2), which takes VE coordinates to the network's own:
z = a x = sqrt(alphas_cumprod) x0 + sqrt(1 - alphas_cumprod) n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Denoiser
from .schedules import Schedule

Network = Callable[[Tensor, Tensor, Any], Tensor]


class NetworkDenoiser(Denoiser):
    """A network `(z, t, cond) -> prediction` with its schedule.

    Args:
        network: called with z of shape (b, *d) in its own coordinates and the times t, shape (b,).
        schedule: from sigma to the network's time, and the range of sigma.
        shape: shape of one point; None where any will do.
    """

    def __init__(
        self, network: Network, schedule: Schedule, *, shape: tuple[int, ...] | None = None
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.shape = shape
        self.sigma_min, self.sigma_max = schedule.sigma_min, schedule.sigma_max

    def input_scale(self, sigma: Tensor) -> float | Tensor:
        """Return a: the variance-preserving coordinates that most networks take."""
        return (1 + sigma**2).rsqrt()

    def predict(self, z: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Ask the network at its own coordinates z and the time that belongs to sigma."""
        return self.network(z, self.schedule.t(sigma.flatten()), cond)


class EpsDenoiser(NetworkDenoiser):
    """The network predicts the noise (Ho et al. 2020): D = x - sigma eps(a x, t)."""

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return x - sigma eps."""
        a = self.input_scale(sigma)
        return x - sigma * self.predict(a * x, sigma, cond)


class VDenoiser(NetworkDenoiser):
    """The network predicts v (Salimans and Ho 2022): D = a^2 x - a sigma v(a x, t)."""

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return a^2 x - a sigma v."""
        a = self.input_scale(sigma)
        return a**2 * x - a * sigma * self.predict(a * x, sigma, cond)


class X0Denoiser(NetworkDenoiser):
    """The network predicts the clean point: D = x0(a x, t)."""

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return the prediction."""
        return self.predict(self.input_scale(sigma) * x, sigma, cond)


class FlowDenoiser(NetworkDenoiser):
    """The network predicts the velocity n - x0 (Lipman et al. 2023; Liu et al. 2023).

    z = (1 - s) x0 + s n = x / (1 + sigma) at s = sigma / (1 + sigma), and
    D = (x - sigma u(z, t)) / (1 + sigma).
    """

    def input_scale(self, sigma: Tensor) -> Tensor:
        """Return 1 / (1 + sigma)."""
        return 1 / (1 + sigma)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return (x - sigma u) / (1 + sigma)."""
        z = self.input_scale(sigma) * x
        return (x - sigma * self.predict(z, sigma, cond)) / (1 + sigma)


class ScoreDenoiser(NetworkDenoiser):
    """The network predicts the score in VE coordinates (Song et al. 2021): D = x + sigma^2 s."""

    def input_scale(self, sigma: Tensor) -> float:
        """Return 1: it takes x itself."""
        return 1.0

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return x + sigma^2 s."""
        return x + sigma**2 * self.predict(x, sigma, cond)


class EDMDenoiser(NetworkDenoiser):
    """The raw network F of Karras et al. (2022), their Equation 7 and Table 1.

    D = c_skip x + c_out F(c_in x, ln(sigma) / 4).
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        *,
        sigma_data: float = 0.5,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(network, schedule, shape=shape)
        self.sigma_data = sigma_data

    def input_scale(self, sigma: Tensor) -> Tensor:
        """Return c_in."""
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return c_skip x + c_out F."""
        total = sigma**2 + self.sigma_data**2
        c_skip, c_in = self.sigma_data**2 / total, self.input_scale(sigma)
        c_out = sigma * self.sigma_data * c_in
        return c_skip * x + c_out * self.predict(c_in * x, sigma, cond)
