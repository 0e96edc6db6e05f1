"""Decoders of known rank, and the agreement of every scale with the exact denoiser."""

import pytest
import torch

from memfold.decoders.base import FunctionDecoder
from memfold.denoisers.exact import GaussianDenoiser
from memfold.lid.decoder_rank import decoder_lpca, decoder_rank, decoder_slope, singular_values
from memfold.lid.flipd import flipd
from memfold.linalg.rank import RankWarning
from memfold.types import InputError
from tests.decoders.worlds import RANK, D, K, latents, linear, smooth
from tests.oracles import rotation, seeded, unchecked, z_score

RULES = ["threshold", "gap", "ratio"]


@pytest.mark.parametrize("d", [3, 8, 20])
def test_singular_values(d):
    scales = (3.0, 2.0, 1.5, 1.2, 1.0)[: min(d, 5)]
    decoder, a, _ = linear(scales, d=d)
    s = singular_values(decoder, latents())
    truth = torch.linalg.svdvals(a).expand(4, -1)
    torch.testing.assert_close(s, truth, atol=1e-9, rtol=1e-9)
    assert bool((s[:, :-1] >= s[:, 1:]).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("estimator", [decoder_rank, decoder_lpca])
@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_rank_of_linear_decoders(estimator, rule, rank):
    decoder, *_ = linear(tuple(1 + 0.1 * i for i in range(rank)))
    result = estimator(decoder, latents(), 0.1, rule=rule)
    assert result.lid.tolist() == [rank] * 4
    assert result.stderr.tolist() == [0] * 4
    assert result.scale == 0.1
    assert result.method.endswith(f"({rule}), decoder")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("estimator", "options"), [(decoder_rank, {}), (decoder_lpca, {"spread": 1e-3})]
)
def test_rank_of_smooth_decoders(estimator, options, rule):
    result = estimator(smooth(), latents(), 0.1, rule=rule, **options)
    assert result.lid.tolist() == [RANK] * 4


@pytest.mark.parametrize("estimator", [decoder_rank, decoder_lpca])
def test_a_constant_decoder_has_dimension_zero(estimator):
    for rule in RULES:
        result = estimator(lambda z: 0 * z + 5, latents(), 0.1, rule=rule)
        assert result.lid.tolist() == [0] * 4


def test_gap_and_ratio_without_a_scale():
    decoder, *_ = linear()
    for rule in ("gap", "ratio"):
        result = decoder_rank(decoder, latents(), rule=rule)
        assert result.lid.tolist() == [5] * 4
        assert result.scale != result.scale
    # 3 of 8: a rule that counts from the other end says 5
    decoder, *_ = linear((3.0, 2.9, 2.8, 1e-3, 9e-4, 8e-4, 7e-4, 6e-4))
    for rule in RULES:
        assert decoder_rank(decoder, latents(), 0.05, rule=rule).lid.tolist() == [3] * 4


def test_bends_count_at_a_large_spread():
    near = decoder_lpca(smooth(), latents(2), 0.2, spread=1e-3, generator=seeded())
    far = decoder_lpca(smooth(), latents(2), 0.2, spread=0.5, generator=seeded())
    assert near.lid.tolist() == [RANK] * 2
    assert bool((far.lid > RANK).all())


def denoiser_of(a, b):
    """The exact denoiser of z -> a z + b."""
    u, s, _ = torch.linalg.svd(a, full_matrices=False)
    keep = s > 1e-9
    return GaussianDenoiser(b, s[keep] ** 2, u[:, keep])


@pytest.mark.parametrize("sigma", [0.1, 1.3])
def test_soft_count_is_flipd_at_noised_points(sigma):
    decoder, a, b = linear()
    soft = decoder_rank(decoder, latents(), sigma, rule="soft")
    model = denoiser_of(a, b)
    truth = flipd(model, decoder(latents()), sigma, trace="exact", generator=seeded())
    torch.testing.assert_close(soft.lid, truth.lid)


@pytest.mark.parametrize("sigma", [0.1, 1.3, 5.0])
def test_slope_is_flipd_at_x(sigma):
    decoder, a, b = linear()
    slope = decoder_slope(decoder, latents(), sigma, n_samples=4000, generator=seeded())
    truth = flipd(denoiser_of(a, b), decoder(latents()), sigma, at="x", trace="exact")
    assert bool(((slope.lid - truth.lid).abs() < 4 * slope.stderr).all())
    assert float(slope.stderr.max()) < 0.1


def test_slope_is_calibrated():
    decoder, a, b = linear()
    z = latents(400)
    slope = decoder_slope(decoder, z, 0.5, n_samples=64, generator=seeded())
    truth = flipd(denoiser_of(a, b), decoder(z), 0.5, at="x", trace="exact")
    error = slope.lid - truth.lid
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - slope.stderr**2)) < 4


def test_slope_of_a_curved_decoder_by_quadrature():
    # one latent, a parabola in the plane: the smoothed density by a sum over a fine grid
    def decoder(z):
        return torch.cat([z, 0.5 * z**2], 1) + 2

    z = torch.tensor([[0.4], [-1.2]], dtype=torch.float64)
    grid = torch.linspace(-9, 9, 40001, dtype=torch.float64)[:, None]
    slope = decoder_slope(decoder, z, 0.3, n_samples=20000, generator=seeded())
    for i in range(2):
        square = ((decoder(grid) - decoder(z[i : i + 1])) ** 2).sum(1) / 0.09
        weights = (-(grid[:, 0] ** 2) / 2 - square / 2).softmax(0)
        truth = float((weights * square).sum())
        assert abs(float(slope.lid[i]) - truth) < 4 * float(slope.stderr[i])


def test_slope_warns_where_the_decoder_bends():
    with pytest.warns(RankWarning, match="at 2 of 2 latents G bends within sigma"):
        decoder_slope(lambda z: torch.sin(6 * z), latents(2), 1.0, generator=seeded())


def test_image_shaped_latents_and_points():
    net = torch.nn.ConvTranspose2d(2, 1, 3, stride=2).double()
    z = torch.randn(2, 2, 2, 3, generator=seeded(), dtype=torch.float64)
    s = singular_values(net, z)
    assert s.shape == (2, 12)
    for f in (decoder_rank, decoder_lpca, decoder_slope):
        assert (
            f(net, z, 1e-3, generator=seeded()).lid.shape == (2,) if f is not decoder_rank else True
        )
    assert decoder_rank(net, z, 1e-6).lid.tolist() == [12, 12]


def test_large_decoder_within_one_dimension():
    u = rotation(800, 200, 3, torch.float32)
    v = rotation(256, 200, 4, torch.float32)
    z = torch.randn(1, 256, generator=seeded())
    result = decoder_rank(lambda z: torch.tanh(z @ v / 4) @ u.mT + 1, z, 0.02)
    assert abs(float(result.lid) - 200) <= 1
    soft = decoder_rank(lambda z: (z @ v) @ u.mT + 1, z, 0.02, rule="soft")
    assert abs(float(soft.lid) - 200) <= 1


@pytest.mark.parametrize("estimator", [decoder_rank, decoder_lpca, decoder_slope])
def test_refusals(estimator):
    decoder, *_ = linear()
    z = latents()
    with pytest.raises(InputError, match=r"z has shape \(8,\); pass a batch of latents"):
        estimator(decoder, z[0], 0.1)
    with pytest.raises(InputError, match=r"sigma = -1\.0 is no scale; choose a number above 0"):
        estimator(decoder, z, -1.0)
    with unchecked(), pytest.raises(InputError, match=r"z has dtype torch\.int64"):
        estimator(decoder, z.long(), 0.1)
    z[2, 1] = torch.nan
    with pytest.raises(InputError, match=r"z\[2\] holds NaN or infinity"):
        estimator(decoder, z, 0.1)
    with pytest.raises(InputError, match="gave NaN or infinity"):
        estimator(lambda z: z / 0, latents(), 0.1)
    with pytest.raises(InputError, match=r"the model takes \(batch, 8\)"):
        estimator(FunctionDecoder(decoder, latent_shape=(8,)), latents(2, 7), 0.1)


def test_rules_that_need_a_scale():
    decoder, *_ = linear()
    with pytest.raises(InputError, match="rule 'threshold' needs a scale: pass sigma"):
        decoder_rank(decoder, latents())
    with unchecked(), pytest.raises(InputError, match="rule 'elbow' is unknown"):
        decoder_rank(decoder, latents(), rule="elbow")
    with pytest.raises(InputError, match="take more samples than the 8 latent coordinates"):
        decoder_lpca(decoder, latents(), 0.1, n_samples=8)


def test_a_threshold_that_splits_the_spectrum_has_an_error():
    decoder, *_ = linear(tuple(1 + 0.02 * i for i in range(K)))
    runs = [
        decoder_lpca(decoder, latents(1), 1.07, spread=0.1, generator=seeded(s)) for s in range(60)
    ]
    lid, stderr = torch.cat([r.lid for r in runs]), torch.cat([r.stderr for r in runs])
    assert float(lid.std()) > 0.2
    assert 0.7 < float((stderr**2).mean().sqrt() / lid.std()) < 3


def test_dimensions_of_the_worlds():
    assert (D, K, RANK) == (20, 8, 5)
