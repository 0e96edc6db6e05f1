"""Networks in the manner of EDM and k-diffusion: sigma is a vector, D is theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memfold.denoisers.adapters.edm import SigmaDenoiser
from memfold.lid.flipd import flipd
from memfold.types import InputError
from tests.oracles import gaussian


class Precond(torch.nn.Module):
    """An exact Gaussian behind the interface of EDM's preconditioned networks."""

    img_channels, img_resolution, sigma_min, sigma_max = 3, 2, 0.01, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.exact, *_ = gaussian(12, 5)
        self.register_parameter("w", torch.nn.Parameter(torch.ones(1, dtype=torch.float64)))

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise; a class shifts the outcome, so that it shows."""
        assert sigma.shape == (len(x),)
        out = self.exact(x.flatten(1), sigma).reshape(x.shape) * self.w
        return out if class_labels is None else out + class_labels.reshape(-1, 1, 1, 1)


def test_shape_range_and_dtype_are_read_from_the_network() -> None:
    """EDM's networks carry them as attributes."""
    denoiser = SigmaDenoiser(Precond())
    assert denoiser.shape == (3, 2, 2)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.01, 10.0)
    assert denoiser.dtype == torch.float64
    with pytest.raises(InputError, match=r"0\.01 to 10"):
        denoiser(torch.zeros(1, 3, 2, 2, dtype=torch.float64), 0.001)


def test_it_is_the_network_it_wraps() -> None:
    """D and its trace are those of the exact Gaussian; the condition arrives."""
    network, (exact, _, variances, _) = Precond(), gaussian(12, 5)
    denoiser = SigmaDenoiser(network)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    want = exact(x.flatten(1), sigma).reshape(x.shape)
    torch.testing.assert_close(denoiser(x, sigma), want)
    labels = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma, labels), want + labels.reshape(-1, 1, 1, 1))
    found = flipd(denoiser, x, 0.5, generator=torch.Generator().manual_seed(0)).lid
    truth = (variances / (variances + 0.25)).sum()
    torch.testing.assert_close(found, truth.expand(4))


def test_what_is_no_network_is_refused() -> None:
    """The message names the type."""
    with pytest.raises(InputError, match="int is no network"):
        SigmaDenoiser(3)  # type: ignore[arg-type]
