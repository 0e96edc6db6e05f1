"""Latents of points: found where they exist, and an honest error where they do not."""

import pytest
import torch

from memfold.decoders.base import FunctionDecoder
from memfold.decoders.search import find_latents
from memfold.types import InputError
from tests.decoders.worlds import latents, linear, smooth
from tests.oracles import seeded


def curved():
    return FunctionDecoder(smooth(k=4, r=4, bend=0.7), latent_shape=(4,))


def test_latents_of_generated_points():
    decoder = curved()
    x = decoder(latents(5, 4))
    found = find_latents(decoder, x, generator=seeded())
    assert float(found.error.max()) < 1e-4
    torch.testing.assert_close(found.z, latents(5, 4), atol=1e-3, rtol=0)
    assert found.start_errors.shape == (5, 8)
    assert bool((found.start_errors >= found.error[:, None] - 1e-9).all())


def test_error_off_the_image_is_the_distance_to_it():
    decoder, a, b = linear()
    x = b + torch.randn(3, 20, generator=seeded(), dtype=torch.float64)
    u = torch.linalg.svd(a, full_matrices=False).U[:, :5]
    off = (x - b) - (x - b) @ u @ u.mT
    found = find_latents(FunctionDecoder(decoder, latent_shape=(8,)), x, generator=seeded(1))
    torch.testing.assert_close(found.error, off.norm(dim=1) / 20**0.5, atol=1e-6, rtol=1e-6)


def test_encoder_is_one_of_the_starts():
    decoder, a, b = linear((1.0,) * 8)
    full = FunctionDecoder(decoder, encode=lambda x: (x - b) @ a)
    found = find_latents(full, decoder(latents()), n_starts=0, n_steps=0, n_refine=0)
    torch.testing.assert_close(found.z, latents())
    assert found.start_errors.shape == (4, 1)
    both = find_latents(full, decoder(latents()), n_starts=3, n_steps=0, n_refine=0)
    torch.testing.assert_close(both.z, latents())
    assert both.start_errors.shape == (4, 4)


def test_more_starts_escape_a_wrong_valley():
    # two valleys: z = 0 and the true one at 2; the mean start falls into either
    decoder = FunctionDecoder(lambda z: z * (z - 2.5) ** 2 + 0.1 * z, latent_shape=(1,))
    x = decoder(torch.full((1, 1), 3.0))
    found = find_latents(decoder, x, n_starts=16, generator=seeded())
    assert float(found.error) < 1e-3
    assert float(found.start_errors.max()) > 0.05


def test_batch_is_the_sum_of_its_samples():
    decoder = curved()
    x = decoder(latents(3, 4)) + 0.1
    whole = find_latents(decoder, x, n_steps=60, generator=seeded(), batch_size=5)
    for i in range(3):
        one = find_latents(decoder, x[i : i + 1], n_steps=60, generator=seeded())
        torch.testing.assert_close(one.z[0], whole.z[i], atol=1e-4, rtol=1e-4)


def test_image_shaped():
    net = torch.nn.ConvTranspose2d(1, 1, 2, stride=2).double()
    decoder = FunctionDecoder(net, latent_shape=(1, 2, 2))
    z = torch.randn(2, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    found = find_latents(decoder, decoder(z).detach(), generator=seeded())
    assert found.z.shape == (2, 1, 2, 2)
    assert float(found.error.max()) < 1e-4


def test_nothing_is_left_changed():
    net = torch.nn.Linear(4, 9)
    x = torch.ones(2, 9)
    rng = torch.get_rng_state()
    with torch.no_grad():
        found = find_latents(FunctionDecoder(net, latent_shape=(4,)), x, n_steps=5, n_refine=3)
        assert not torch.is_grad_enabled()
    assert not found.z.requires_grad
    assert net.weight.grad is None
    assert torch.equal(x, torch.ones(2, 9))
    assert torch.equal(torch.get_rng_state(), rng)


def test_refusals():
    with pytest.raises(InputError, match="needs the shape of a latent"):
        find_latents(lambda z: z, torch.ones(1, 3))
    with pytest.raises(InputError, match="nowhere to start; take 1 or more"):
        find_latents(lambda z: z, torch.ones(1, 3), n_starts=0)
