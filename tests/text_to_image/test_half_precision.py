"""A pipeline in half precision: the rounding of its latents is no freedom."""

from __future__ import annotations

import copy

import pytest
import torch

import memfold
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
SIGMA = 0.03


def answers(kind, point):
    """What a network predicts that knows one latent by heart, given what it was given."""

    def eps(z):
        return (z * (1 + SIGMA**2) ** 0.5 - point) / SIGMA

    def v(z):
        return (eps(z) - SIGMA * point) / (1 + SIGMA**2) ** 0.5

    def velocity(z):
        return (z * (1 + SIGMA) - point) / SIGMA - point

    return {"eps": eps, "v": v, "flow": velocity}[kind]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "kind"), [("sd1 (eps)", "eps"), ("sd2 (v)", "v"), ("sd3", "flow"), ("flux", "flow")]
)
def test_a_memorized_latent_has_no_dimension(family, kind, dtype, monkeypatch):
    """What is left is the rounding of the answer, of size n or n - x0: below eps^2 a dimension."""
    pipe = copy.deepcopy(tiny.pipeline(family)).to(dtype)
    model = memfold.TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
    generator = torch.Generator().manual_seed(3)
    point = torch.randn(1, *model.shape, generator=generator)
    predict = answers(kind, point)

    def forward(*args, **kwargs):
        sample, _ = model.places
        z = args[sample] if isinstance(sample, int) else kwargs[sample]
        assert z.dtype == dtype
        return (predict(z.float()).to(dtype),)

    denoiser = model.denoiser("a photo of the dog")
    monkeypatch.setattr(model.network, "forward", forward)
    found = memfold.dsm_lid(denoiser, point, SIGMA, n_noises=4, generator=generator)
    assert found.lid.abs().max() < point[0].numel() * torch.finfo(dtype).eps ** 2
