"""The contract of tests/lid/test_contract.py, for the estimators that it does not list.

Three signatures: (denoiser, x, sigma), (decoder, z, sigma), and densities or samplers at x.
"""

import inspect

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.parameterizations import FlowDenoiser, ScoreDenoiser
from memfold.denoisers.schedules import flow_schedule, ve_schedule
from memfold.lid.decoder_rank import decoder_lpca, decoder_rank, decoder_slope
from memfold.lid.fpregress import fpregress
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.lidl import lidl
from memfold.lid.mle import MLE
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.sampler import sampler_lid
from memfold.lid.spectral import spectral_lid
from memfold.types import Estimate, InputError
from tests.decoders.worlds import smooth
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, tiny_unet, unchecked


def lhsd(denoiser, x, sigma, **options):
    return spectral_lid(denoiser, x, sigma, count="lhsd", **options)


DENOISER = [normal_bundle, jacobian_rank, lhsd]
DECODER = [decoder_rank, decoder_lpca, decoder_slope]
D, K = 20, 4


def example(n=4):
    model, points = mixture((2, 7), D, dtype=torch.float64)
    return model, torch.cat([points(0, n // 2), points(1, n - n // 2)])


@pytest.fixture(params=DENOISER, ids=lambda f: f.__name__)
def estimator(request):
    return request.param


# Each estimator at work on its own model: (x, generator) -> Estimate, at points it knows.


def over_denoiser(f):
    model, x = example()
    return (lambda y, g: f(model, y, 0.1, generator=g)), x


def over_decoder(f):
    options = {} if f is decoder_rank else {"generator": None}
    z = torch.randn(4, 8, generator=seeded(9), dtype=torch.float64)

    def run(y, g):
        return f(smooth(bend=0.1), y, 0.1, **({"generator": g} if options else {}))

    return run, z


def log_density(x, sigma):
    basis = rotation(D, K, 3)
    cov = basis @ basis.mT + sigma**2 * torch.eye(D, dtype=torch.float64)
    return MultivariateNormal(torch.full((D,), 2.0, dtype=torch.float64), cov).log_prob(x)


def over_density(f):
    x = 2 + torch.randn(4, K, generator=seeded(9), dtype=torch.float64) @ rotation(D, K, 3).mT
    if f is fpregress:
        return (lambda y, g: fpregress(log_density, y, [0.1, 0.11, 0.12])), x
    models = {s: (lambda y, s=s: log_density(y, s)) for s in (0.1, 0.11, 0.12)}
    return (lambda y, g: lidl(models, y)), x


def over_sampler(f):
    def sample(n, generator):
        z = torch.randn(n, K, generator=generator, dtype=torch.float64)
        return 2 + z @ rotation(D, K, 3).mT

    return (lambda y, g: f(sample, y, MLE(20), n_samples=300, generator=g)), sample(4, seeded(2))


FAMILY = (
    [(over_denoiser, f) for f in DENOISER]
    + [(over_decoder, f) for f in DECODER]
    + [(over_density, f) for f in (fpregress, lidl)]
    + [(over_sampler, sampler_lid)]
)


@pytest.fixture(params=FAMILY, ids=lambda pair: pair[1].__name__)
def member(request):
    make, f = request.param
    return make(f)


def test_result(member):
    run, x = member
    result = run(x, seeded())
    assert isinstance(result, Estimate)
    assert result.lid.shape == result.stderr.shape == (4,)
    assert result.lid.dtype == result.stderr.dtype == x.dtype
    assert bool((result.stderr >= 0).all())
    assert isinstance(result.scale, float)
    assert not result.lid.requires_grad
    assert result.method.endswith(("points", "decoder"))


def test_batch_is_the_sum_of_its_samples_in_any_order(member):
    run, x = member
    whole = run(x, seeded())
    for i in range(len(x)):
        one = run(x[i : i + 1], seeded())
        torch.testing.assert_close(one.lid[0], whole.lid[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.stderr[0], whole.stderr[i], rtol=1e-4, atol=1e-5)
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(run(x[order], seeded()).lid, whole.lid[order], rtol=1e-5, atol=1e-5)


def test_nothing_is_left_changed(member):
    run, x = member
    before, rng = x.clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    run(x, seeded())
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_callers_gradients_play_no_part(member):
    run, x = member
    plain = run(x, seeded())
    with torch.no_grad():
        off = run(x, seeded())
        assert not torch.is_grad_enabled()
    on = run(x.clone().requires_grad_(True), seeded())
    torch.testing.assert_close(off.lid, plain.lid, rtol=0, atol=0)
    torch.testing.assert_close(on.lid, plain.lid, rtol=0, atol=0)
    assert not on.lid.requires_grad


def test_no_points(member):
    run, x = member
    for bad in (x[:0], x[0]):
        with pytest.raises(InputError, match="pass a batch of"):
            run(bad, seeded())


# --- denoisers


def test_signature():
    for f in (normal_bundle, jacobian_rank, spectral_lid):
        parameters = inspect.signature(f).parameters
        assert list(parameters)[:3] == ["denoiser", "x", "sigma"]
        rest = list(parameters.values())[3:]
        assert all(p.kind is p.KEYWORD_ONLY for p in rest)
        names = {p.name for p in rest}
        assert {"cond", "n_noises", "generator"} <= names
        assert names & {"memory_budget", "batch_size"}
    for f in DECODER:
        assert list(inspect.signature(f).parameters)[:3] == ["decoder", "z", "sigma"]


def test_plain_callable(estimator):
    model, x = example()
    a = estimator(model, x, 0.1, generator=seeded())
    b = estimator(lambda y, s: model.denoise(y, s, None), x, 0.1, generator=seeded())
    torch.testing.assert_close(a.lid, b.lid)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_row_is_named(estimator, value):
    model, x = example()
    x[3, 7] = value
    with pytest.raises(InputError, match=r"x\[3\] holds NaN or infinity"):
        estimator(model, x, 0.1)


def test_refusals_of_points_and_sigma(estimator):
    model, x = example()
    with pytest.raises(InputError, match=r"x has shape .* the model takes \(batch, 20\)"):
        estimator(model, x[:, :19], 0.1)
    with unchecked(), pytest.raises(InputError, match="pass floating-point points"):
        estimator(model, x.long(), 0.1)
    with pytest.raises(InputError, match=r"rounds small noises away; pass x\.float\(\)"):
        estimator(model, x.half(), 0.1)
    with unchecked(), pytest.raises(InputError, match="sigma must be one number, not"):
        estimator(model, x, [0.1])
    narrow = FunctionDenoiser(lambda y, s: y / (1 + s**2), sigma_range=(0.02, 5.0))
    for sigma in (0.01, 9.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"choose one from 0\.02 to 5"):
            estimator(narrow, x, sigma)
    with unchecked(), pytest.raises(InputError, match="str is no denoiser"):
        estimator("model", x, 0.1)
    for n in (1, 0, -3):
        with pytest.raises(InputError, match=f"n_noises = {n} gives no standard error; take 2 or"):
            estimator(model, x, 0.1, n_noises=n)
    with pytest.raises(TypeError, match="n_noise"):
        estimator(model, x, 0.1, n_noise=4)


def test_model_that_returns_nan_names_the_point(estimator):
    _, x = example()

    def broken(y, s):
        return torch.where(y[:, :1] > 1e5, torch.nan, 0.5) * y

    x[2, 0] = 2e5
    with pytest.raises(InputError, match=r"the model returned NaN or infinity at x\[2\]"):
        estimator(broken, x, 0.1, generator=seeded())


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_odd_chunks_change_nothing(estimator, rows, monkeypatch):
    model, x = example()
    whole = estimator(model, x, 0.1, generator=seeded())
    if estimator is normal_bundle:
        parts = estimator(model, x, 0.1, generator=seeded(), batch_size=rows)
    else:
        for name in ("spectral", "jacobian_rank"):
            monkeypatch.setattr(f"memfold.lid.{name}.rows_that_fit", lambda *_: rows)
        parts = estimator(model, x, 0.1, generator=seeded())
    torch.testing.assert_close(parts.lid, whole.lid, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-4, atol=1e-5)


def test_conditions_of_samples_reach_the_model(estimator):
    d = 12
    q = rotation(d, d, 1)

    def model(y, s, cond):  # the condition says how many directions are free
        free = (torch.arange(d) < cond["k"][:, None]).to(y)
        return (y @ q * free + cond["shift"]) @ q.mT

    cond = {"k": torch.tensor([1, 5, 9]), "shift": 0.0}
    x = torch.randn(3, d, generator=seeded(), dtype=torch.float64)
    x = (x @ q * (torch.arange(d) < cond["k"][:, None])) @ q.mT
    result = estimator(model, x, 0.1, cond=cond, generator=seeded(), n_noises=64)
    truth = cond["k"] + (d - cond["k"]) * 0.2**4 / (1 + 0.2**4) * (estimator is lhsd)
    assert bool(((result.lid - truth).abs() <= 4.5 * result.stderr + 1e-6).all())


def test_weights_collect_no_gradients(estimator):
    net = tiny_unet(in_channels=1, out_channels=1, sample_size=4).requires_grad_(True)
    x = torch.randn(1, 1, 4, 4, generator=seeded())
    n = 64 if estimator is normal_bundle else 2
    estimator(lambda y, s: net(y, s.flatten()).sample, x, 0.5, n_noises=n, generator=seeded())
    assert all(p.grad is None for p in net.parameters())


def test_generator_decides(estimator):
    net = tiny_unet(in_channels=1, out_channels=1, sample_size=4)
    x = torch.randn(2, 1, 4, 4, generator=seeded())
    n = 64 if estimator is normal_bundle else 2

    def model(y, s):
        return net(y, s.flatten()).sample

    one, two = (estimator(model, x, 0.5, n_noises=n, generator=seeded(3)) for _ in range(2))
    torch.testing.assert_close(one.lid, two.lid, rtol=0, atol=0)


def test_flow_matching_and_ve_models_are_the_same_to_all(estimator):
    exact, mean, variances, basis = gaussian(12, 5)
    x = gaussian_points(mean, variances, basis, 2)

    def velocity(z, t, cond):
        r = t[:, None]
        x0 = exact.denoise(z / (1 - r), r / (1 - r), None)
        return (z - (1 - r) * x0) / r - x0

    def score(z, t, cond):
        return (exact.denoise(z, t[:, None], None) - z) / t[:, None] ** 2

    grid = torch.linspace(1, 21, 21, dtype=torch.float64) / 22  # sigma = 0.1 is s = 2 / 22
    want = estimator(exact, x, 0.1, generator=seeded())
    for model in (
        FlowDenoiser(velocity, flow_schedule(grid, grid), shape=(12,)),
        ScoreDenoiser(score, ve_schedule(0.01, 50.0), shape=(12,)),
    ):
        got = estimator(model, x, 0.1, generator=seeded())
        # times are interpolated in the schedule, to about 1e-4
        torch.testing.assert_close(got.lid, want.lid, rtol=1e-3, atol=1e-6)
