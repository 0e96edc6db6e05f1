"""From the networks of NVlabs' EDM and of k-diffusion to a Denoiser.

Both compute D(x, sigma) themselves, in VE coordinates, and take sigma with the shape (b,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.base import Denoiser
from memfold.types import InputError


class SigmaDenoiser(Denoiser):
    """A network `(x, sigma) -> D` that takes sigma as a vector and knows its own scaling.

    Serves the preconditioned networks of Karras et al. (2022; `EDMPrecond`, `VPPrecond`,
    `VEPrecond` and EDM2's) and k-diffusion's wrappers alike.

    Args:
        network: the module; its `img_channels`, `img_resolution`, `sigma_min` and `sigma_max` are
            read where it has them.
        shape: shape of one point; read from the network where None.
        sigma_range: smallest and largest sigma; read from the network where None.
        label: the name under which the network takes a condition ("class_labels" in EDM).
    """

    space = "pixels"

    def __init__(
        self,
        network: Any,
        *,
        shape: tuple[int, ...] | None = None,
        sigma_range: tuple[float, float] | None = None,
        label: str = "class_labels",
    ) -> None:
        if not callable(network):
            raise InputError(
                f"{type(network).__name__} is no network; pass a module (x, sigma) -> D"
            )
        self.network, self.label = network, label
        self.shape = _shape(network) if shape is None else shape
        low = float(getattr(network, "sigma_min", 0.0))
        high = float(getattr(network, "sigma_max", float("inf")))
        self.sigma_min, self.sigma_max = (low, high) if sigma_range is None else sigma_range
        if isinstance(network, torch.nn.Module):
            weight = next(network.parameters(), torch.empty(0))
            self.device, self.dtype = weight.device, weight.dtype
            if getattr(network, "use_fp16", False) and weight.device.type == "cuda":
                self.dtype = torch.float16  # inside, on a GPU; the weights stay in float32

    def input_scale(self, sigma: Tensor) -> float | Tensor:
        """Return the network's own c_in: EDM's, k-diffusion's, or 1 where neither is to be seen."""
        scalings = getattr(self.network, "get_scalings", None)
        if callable(scalings):
            return torch.as_tensor(scalings(sigma)[-1])
        data = getattr(self.network, "sigma_data", None)
        if data is not None:
            return torch.rsqrt(sigma**2 + float(data) ** 2)
        return torch.rsqrt(sigma**2 + 1) if hasattr(self.network, "beta_d") else 1.0

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Call the network; the condition goes by keyword, where there is one."""
        extra = {} if cond is None else {self.label: cond}
        return self.network(x, sigma.flatten(), **extra).to(x.dtype)


def _shape(network: Any) -> tuple[int, ...] | None:
    channels, size = (getattr(network, k, None) for k in ("img_channels", "img_resolution"))
    if channels is None or size is None:
        return None
    return (int(channels), int(size), int(size))
