"""Complexity of images whose count is known."""

import numpy as np
import pytest
import torch

from memfold.memorization.complexity import edge_count, features, png_size, spectral_count
from memfold.types import InputError


def test_spectral_count_is_the_lid_of_a_gaussian():
    """With variances a_k^2 in the basis of cosines: tr dD/dx = sum a^2 / (a^2 + sigma^2)."""
    rng = np.random.default_rng(0)
    n, sigma = 6, 0.3
    k, i = np.arange(n)[:, None], np.arange(n)[None] + 0.5
    basis = np.sqrt(np.where(k == 0, 1, 2) / n) * np.cos(np.pi * k * i / n)
    a = rng.normal(size=(n, n))
    image = torch.tensor(basis.T @ a @ basis)[None, None]
    covariance = np.diag(a.ravel() ** 2)
    jacobian = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(n * n))
    assert spectral_count(image, sigma).item() == pytest.approx(np.trace(jacobian))


def test_edges_of_a_square():
    """A bright square of 3 x 3 has 12 edges, each as high as it is bright."""
    x = torch.zeros(1, 1, 8, 9, dtype=torch.float64)
    x[..., 2:5, 4:7] = 0.5
    assert edge_count(x, 0.1).item() == pytest.approx(12 * 0.25 / 0.26)
    assert edge_count(x + 7, 0.1).item() == pytest.approx(12 * 0.25 / 0.26)


def test_grey_in_three_channels_counts_once():
    x = torch.rand(2, 1, 7, 5, dtype=torch.float64)
    three = x.expand(2, 3, 7, 5)
    for count in (edge_count, spectral_count):
        torch.testing.assert_close(count(three, 0.1), count(x * 3**0.5, 0.1))


def test_features_order_images_by_complexity():
    """Flat, one shape, noise; one row an image whatever the batch; the argument stays as it is."""
    x = torch.full((3, 1, 16, 12), -0.8)
    x[1, :, 4:9, 3:8] = 0.5
    x[2] = torch.rand(1, 16, 12, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    f = features(x, 0.1)
    assert f.shape == (3, 3)
    assert (f.diff(dim=0) > 0).all()
    torch.testing.assert_close(features(x[1:2], 0.1), f[1:2])
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    size = png_size(x)
    assert (size.diff() > 0).all()


def test_png_is_read_by_its_size():
    """The size is that of the file: signature, 8-bit levels, both channel layouts."""
    grey, colour = torch.zeros(1, 1, 4, 6), torch.zeros(1, 3, 4, 6)
    assert 60 < png_size(grey).item() < png_size(colour).item() + 20


def test_counts_of_half_precision_do_not_overflow():
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)).half()
    assert torch.isfinite(features(x, 0.01)).all()
    assert features(x, 0.01)[0, 0] > 2**17


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: features(torch.zeros(2, 5), 0.1), r"images \(b, c, h, w\), got shape \(2, 5\)"),
        (lambda: features(torch.zeros(1, 1, 2, 2), 0.0), "above 0, got 0.0"),
        (lambda: png_size(torch.zeros(1, 4, 2, 2)), "1 or 3 channels"),
        (lambda: png_size(torch.full((1, 1, 2, 2), 1.5)), r"in \[-1, 1\]"),
    ],
)
def test_errors(call, match):
    with pytest.raises(InputError, match=match):
        call()
