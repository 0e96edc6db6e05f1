"""Noise schedules: the only file that knows the time variable t.

A schedule turns sigma, the noise standard deviation in VE coordinates, into the time that the
network was trained with. Tables are the checkpoint's own; between their entries the time is
interpolated linearly in log sigma; beyond their ends there is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError


@dataclass(frozen=True)
class Schedule:
    """A table of sigmas and the times that belong to them.

    Attributes:
        sigmas: noise standard deviations in VE coordinates, ascending, shape (n,), float64.
        times: what the network is given as its time at these sigmas, shape (n,), float64.
    """

    sigmas: Float[Tensor, " n"]
    times: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        """Refuse a table that is not finite, positive and ascending."""
        s = self.sigmas
        if s.numel() < 2 or not (s.isfinite().all() and (s > 0).all() and (s.diff() > 0).all()):
            raise InputError(
                "the schedule's sigmas are not finite, positive and ascending: the model's "
                "scheduler configuration is damaged"
            )

    @property
    def sigma_min(self) -> float:
        """The smallest sigma of the table."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The largest sigma of the table."""
        return float(self.sigmas[-1])

    def t(self, sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the time for each sigma, interpolated in log sigma; the caller keeps the range."""
        logs = sigma.detach().to("cpu", torch.float64).log().numpy()
        table, times = self._by_sigma
        times = np.interp(logs, table, times)
        return torch.as_tensor(times, dtype=torch.float64).to(sigma)

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return sigma for each time, float64 on the CPU; times beyond the table take its ends."""
        times = t.detach().to("cpu", torch.float64).numpy()
        return torch.as_tensor(np.interp(times, *self._by_time), dtype=torch.float64).exp()

    @cached_property
    def _by_sigma(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the sigmas, and their times."""
        return self.sigmas.log().numpy(), self.times.numpy()

    @cached_property
    def _by_time(self) -> tuple[np.ndarray, np.ndarray]:
        """Times in ascending order, and the logarithms of their sigmas."""
        order = self.times.argsort()
        return self.times[order].numpy(), self.sigmas[order].log().numpy()

    def retimed(self, scale: float, shift: float) -> Schedule:
        """Return the same sigmas for a network that is given `scale * t + shift` as its time."""
        return Schedule(self.sigmas, self.times * scale + shift)


def vp_schedule(alphas_cumprod: Tensor) -> Schedule:
    """Make the schedule of a variance-preserving model from its table.

    z_t = sqrt(a_t) x0 + sqrt(1 - a_t) n, hence sigma_t = sqrt((1 - a_t) / a_t) and the time is the
    row of the table. Rows with a_t = 0 (zero terminal signal-to-noise) have no finite sigma and
    are left out.

    Args:
        alphas_cumprod: cumulative products of alpha, descending, shape (n,).

    Returns:
        The schedule.
    """
    a = alphas_cumprod.detach().to("cpu", torch.float64)
    keep = (a > 0) & (a < 1)
    times = torch.arange(len(a), dtype=torch.float64)[keep]
    return Schedule(((1 - a) / a).sqrt()[keep], times)


def flow_schedule(flow_sigmas: Tensor, times: Tensor) -> Schedule:
    """Make the schedule of a flow-matching model, z_s = (1 - s) x0 + s n.

    In VE coordinates sigma = s / (1 - s). Rows with s = 0 or s = 1 are left out.

    Args:
        flow_sigmas: the interpolation times s in [0, 1] of the scheduler (shift applied), (n,).
        times: what the network is given at these s, shape (n,).

    Returns:
        The schedule.
    """
    s = flow_sigmas.detach().to("cpu", torch.float64)
    order = s.argsort()
    s, times = s[order], times.detach().to("cpu", torch.float64)[order]
    keep = (s > 0) & (s < 1)
    return Schedule((s / (1 - s))[keep], times[keep])


def ve_schedule(sigma_min: float, sigma_max: float) -> Schedule:
    """Make the schedule of a model that is given sigma itself (score SDE, VE)."""
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64)
    grid = torch.linspace(0, 1, 2048, dtype=torch.float64)
    grid = ends[0] ** (1 - grid) * ends[1] ** grid
    return Schedule(grid, grid)


def edm_schedule(sigma_min: float, sigma_max: float) -> Schedule:
    """Make the schedule of Karras et al. (2022): c_noise = ln(sigma) / 4 (their Table 1)."""
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64)
    return Schedule(ends, ends.log() / 4)
